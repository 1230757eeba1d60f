// The table of runs, sorted by any column.
{
  const count = (pair) => (pair ? pair[0] / pair[1] : null);
  const accuracy = (pair) =>
    pair ? [percent(count(pair), pair[1]), el("small", {}, interval(pair[0], pair[1]))] : ["–"];
  const plain = (value, digits) => (value === null ? "–" : digits === undefined ? value : grouped(Number(value.toFixed(digits))));
  const budgets = new Set(RUNS.filter((r) => r.worst).map((r) => `${NORMS[r.budget.norm]} ${budgetText(r.budget.eps)}`));
  const oneBudget = budgets.size === 1 ? [...budgets][0] : null;

  const columns = [
    { title: "run", under: `${RUNS.length}`, value: (r) => r.name, cell: (r) => [
      nameOf(r),
      r.complete === false ? el("small", { class: "flag" }, `cut short: ${grouped(r.clean[1])} of ${grouped(DATA.index.length)}`) : null,
      r.attacked ? null : el("small", { class: "flag" }, "not attacked")] },
    { title: "clean", under: "%", numeric: true, value: (r) => count(r.clean), cell: (r) => accuracy(r.clean) },
    { title: "worst case", under: oneBudget ? `% at ${oneBudget}` : "% at its own budget", numeric: true,
      value: (r) => (r.worst ? r.worst.correct / r.worst.n : null), last: doubted,
      cell: (r) => (r.worst ? [
        el(doubted(r) ? "s" : "strong", { title: `rests on ${r.worst.rests_on.join(", ")}` }, percent(r.worst.correct / r.worst.n, r.worst.n)),
        doubted(r) ? el("small", { class: "flag" }, "✕ overstated") : null,
        el("small", {}, interval(r.worst.correct, r.worst.n)),
        oneBudget ? null : el("small", {}, `${NORMS[r.budget.norm]} ${budgetText(r.budget.eps)}`),
        r.worst.knowledge === "adaptive" ? null : el("small", { class: "flag" }, `${r.worst.knowledge} only`)] : ["–"]) },
    ...(RUNS.some((r) => r.certified) ? [{ title: "certified", under: "% proven at that budget", numeric: true,
      value: (r) => count(r.certified), cell: (r) => accuracy(r.certified) }] : []),
    { title: "figure", under: "the worst case is", numeric: false, value: (r) => (r.verdict ? RANK[r.verdict.status] - r.verdict.counts.INCONCLUSIVE : null),
      cell: (r, k) => {
        if (!r.verdict) return r.attacked ? [el("a", { href: "#verdicts-none", class: "verdict" }, "none")] : ["–"];
        const { counts, profile, checks } = r.verdict, failed = checks.filter((c) => c.status === "FAIL");
        return [el("a", { href: `#verdict-${k}`, class: "verdict" }, badge(r.verdict)),
          notRobust(r.verdict) ? el("small", {}, "the net is not robust") : null,
          el("small", {}, `${profile}: ${counts.PASS} of ${counts.PASS + counts.FAIL + counts.INCONCLUSIVE} pass`),
          ...failed.slice(0, 3).map((c) => el("small", { class: "flag" }, c.failure)),
          failed.length > 3 ? el("small", {}, `and ${failed.length - 3} more`) : null];
      } },
    { title: "method", value: (r) => r.method || r.recipe, cell: (r) => [el("span", { class: "value" }, plain(r.method || r.recipe)),
      r.recipe && r.method ? el("small", {}, `recipe ${r.recipe}`) : null] },
    { title: "net", value: (r) => r.net, cell: (r) => [el("span", { class: "value" }, plain(r.net))] },
    ...DATA.views.map((view, k) => attackColumn(view, k)).filter(Boolean),
    { title: "passes", under: "an example", numeric: true, value: (r) => r.passes, cell: (r) => [plain(r.passes, 0)] },
    { title: "training", under: "s", numeric: true, value: (r) => r.seconds.train, cell: (r) => [plain(r.seconds.train, 0),
      r.trained && r.seconds.train !== null ? el("small", { class: "value" }, `of ${r.trained}`) : null,
      r.base && r.seconds.train !== null ? el("small", { class: "value" }, `after ${r.base}`) : null] },
    { title: "attacks", under: "s", numeric: true, value: (r) => r.seconds.evaluate, cell: (r) => [plain(r.seconds.evaluate, 0)] },
    { title: "parameters", numeric: true, value: (r) => r.parameters, cell: (r) => [plain(r.parameters, 0)] },
    { title: "seed", numeric: true, value: (r) => r.seed, cell: (r) => [plain(r.seed, 0)] },
  ];

  function attackColumn(view, k) {
    if (view.worst) return null;
    const found = RUNS.map((r) => r.attacks[k]).filter(Boolean);
    const minimal = found.every((a) => a.eps === null);
    const where = new Set(found.map((a) => `${NORMS[a.norm]} ${a.eps === null ? "median" : budgetText(a.eps)}`));
    const one = where.size === 1 ? [...where][0] : null;
    return {
      title: view.name, numeric: true,
      under: minimal && one ? `median ${NORMS[found[0].norm]}` : one ? `% at ${one}` : "% at its own eps",
      value: (r) => {
        const a = r.attacks[k];
        if (!a) return null;
        return a.eps !== null ? a.correct / a.n : a.median === null ? Infinity : a.median;
      },
      cell: (r) => {
        const a = r.attacks[k];
        if (!a) return ["–"];
        const title = `${plural(a.passes, "pass", "passes")} an example, over all budgets`;
        if (a.eps === null) {
          const robust = a.correct ? el("small", {}, `${percent(a.correct / a.n, a.n)} % robust`) : null;
          return [el("span", { title }, a.median === null ? "none" : short(a.median)), robust];
        }
        return [el("span", { title }, percent(a.correct / a.n, a.n)), el("small", {}, interval(a.correct, a.n)),
          one ? null : el("small", {}, `${NORMS[a.norm]} ${budgetText(a.eps)}`)];
      },
    };
  }

  const RANK = { believable: 2e3, undecided: 1e3, overstated: 0 };
  let sorted = columns.findIndex((c) => c.title === "worst case"), rising = false;
  const rows = RUNS.map((run, number) => el("tr", { class: doubted(run) ? "doubted" : null }, ...columns.map((c, k) =>
    el(k === 0 ? "th" : "td", k === 0 ? { scope: "row" } : { class: c.numeric ? "n" : null }, ...c.cell(run, number)))));
  const heads = columns.map((c, k) => column({ class: c.numeric ? "n" : null },
    el("button", { type: "button", onclick: () => {
      rising = k === sorted ? !rising : !(c.numeric || c.title === "figure");
      sorted = k;
      sort();
    } }, c.title), c.under && k ? el("small", {}, c.under) : null));
  const grid = table(heads, rows), body = grid.lastChild;
  function sort() {
    const { value, last } = columns[sorted];
    const order = RUNS.map((_, k) => k).sort((a, b) => {
      const [x, y] = [value(RUNS[a]), value(RUNS[b])];
      if (x === null || y === null) return (x === null) - (y === null) || a - b; // unknown values come last
      if (last && last(RUNS[a]) !== last(RUNS[b])) return last(RUNS[a]) - last(RUNS[b]);
      const less = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x === y ? 0 : x - y;
      return (rising ? less : -less) || a - b;
    });
    heads.forEach((head, k) => {
      if (k === sorted) head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    body.append(...order.map((k) => rows[k]));
  }
  sort();
  at("runs-note").textContent =
    "The worst case counts an example as wrong if any attack broke it at the budget. For an attack that searches for the " +
    "nearest adversarial example the median distance is shown; larger is better. Click a heading to sort" +
    (RUNS.some(doubted) ? "; by worst case, runs with an overstated figure come after the others." : ".");
  at("runs").append(grid);
}

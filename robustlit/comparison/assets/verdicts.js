// Whether the figure of each run, its worst case, is believable: the checks that did not pass, with their findings and what to try next.
{
  const command = (run, again = run.again) => [el("code", {}, again), run.note ? ` (${run.note})` : ""];
  const inFull = (run) => `${run.again.replace(/ --verdict(=quick)?(?= |$)/, "")} --verdict=full`;
  const check = (c) => el("li", {}, el("span", { class: c.status === "FAIL" ? "flag" : null }, `${CHECKS[c.status]} ${c.numbers}${/\D/.test(c.numbers) ? ":" : ""} ${c.name}`),
    el("div", {}, c.finding), c.source ? el("small", {}, c.source) : null);
  const list = (checks) => (checks.length ? el("ul", { class: "checks" }, ...checks.map(check)) : null);
  const failing = RUNS.filter(doubted).length;

  function verdict(run, k) {
    const { profile, counts, checks, passed, budget, n } = run.verdict, total = counts.PASS + counts.FAIL + counts.INCONCLUSIVE;
    const failed = checks.filter((c) => c.status === "FAIL"), undecided = checks.filter((c) => c.status === "INCONCLUSIVE");
    const summary = failed.length ? failed.map((c) => c.failure).join(", ") : `${counts.PASS} of ${total} checks pass`;
    return el("details", { id: `verdict-${k}`, open: failed.length > 0 && failing <= 3 },
      el("summary", {}, badge(run.verdict), " ", shortName(run), el("span", { class: "quiet" }, [` ${judged(run.verdict)}`, summary].filter((part) => part.trim()).join("; "))),
      el("p", { class: "quiet" }, `Profile ${profile}, ${NORMS[budget.norm] || budget.norm} ${budgetText(budget.eps || 0)}, probes on ${plural(n || 0, "example")}. ` +
        (profile === "quick" ? "The full profile decides more: " : ""),
        ...(profile === "quick" && run.again ? command(run, inFull(run)) : [])),
      list(failed),
      undecided.length ? el("h4", {}, "Undecided") : null, list(undecided),
      passed.length ? el("p", { class: "quiet" }, `Passed: ${passed.join(", ")}.`) : null);
  }

  const withVerdict = RUNS.map((_, k) => k).filter((k) => RUNS[k].verdict);
  const rank = (k) => ["overstated", "undecided", "believable"].indexOf(RUNS[k].verdict.status);
  const without = RUNS.filter((run) => run.attacked && !run.verdict);
  at("verdicts-note").textContent =
    "Whether the worst case, the figure, can be believed. Overstated: a check found that the net is less robust. Believable: no check did, " +
    "which is no proof; a believable figure may be low.";
  at("verdicts").append(...withVerdict.sort((a, b) => rank(a) - rank(b) || a - b).map((k) => verdict(RUNS[k], k)));
  if (without.length) {
    const some = without.slice(0, 12), known = without.filter((run) => run.again);
    at("verdicts").append(el("div", { id: "verdicts-none", tabindex: "-1" }, el("p", {}, "No verdict: ",
      ...some.flatMap((run, i) => [i ? ", " : "", shortName(run)]),
      without.length > some.length ? ` and ${without.length - some.length} more. ` : ". ",
      ...(known.length ? ["To get one", without.length > 1 ? [" of ", shortName(known[0])] : "", ": ", command(known[0])].flat() :
        ["From Python: ", el("code", {}, "robustlit.verdict.verdict")])),
    known.length > 1 ? el("details", {}, el("summary", {}, `Of ${plural(known.length - 1, "other")}`),
      el("ul", { class: "checks" }, ...known.slice(1).map((run) => el("li", {}, shortName(run), ": ", ...command(run))))) : null));
  }
  // The links in the table open the verdict.
  at("runs").addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#verdict']"), there = link && document.querySelector(link.getAttribute("href"));
    if (!there) return;
    event.preventDefault();
    if (there.tagName === "DETAILS") there.open = true;
    there.scrollIntoView({ block: "start" });
    (there.querySelector("summary") || there).focus({ preventScroll: true });
  });
}

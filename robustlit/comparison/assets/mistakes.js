// Accuracy of each class, and the examples that only one run gets wrong.
{
  const CLASSES_SHOWN = 20, PICTURED = 24, LISTED = 2000;
  const kind = at("kind");
  kind.append(el("option", { value: "worst" }, "in the worst case at the reported budget"),
    el("option", { value: "clean" }, "without an attack"));
  const whole = new Uint8Array(DATA.index.length).fill(1);
  const opened = RUNS.map((run) => run.mistakes && {
    tested: run.mistakes.tested ? bits(run.mistakes.tested) : whole,
    ...Object.fromEntries(["clean", "worst"].map((k) => [k, run.mistakes[k] && open(run.mistakes[k])])),
  });
  function open(found) {
    const wrong = bits(found.wrong), as = new Int32Array(wrong.length).fill(-1);
    for (let k = 0, next = 0; k < wrong.length; k += 1) if (wrong[k]) as[k] = found.as[next++];
    return { wrong, as };
  }
  const usable = () => shownRuns().filter((k) => opened[k] && opened[k][kind.value]);
  const classes = [...new Set(DATA.labels)].sort((a, b) => a - b);
  // The name of a class, shortened; its number where the runs do not name it.
  const className = (c, most = 14) => (c < 0 ? "no class" : clipped((DATA.classes || [])[c] || String(c), most));
  const number = new Map(classes.map((c, k) => [c, k]));

  function perClass(runs) {
    const counts = runs.map((r) => {
      const n = new Array(classes.length).fill(0), right = new Array(classes.length).fill(0);
      DATA.labels.forEach((label, k) => {
        if (!opened[r].tested[k]) return;
        n[number.get(label)] += 1;
        right[number.get(label)] += 1 - opened[r][kind.value].wrong[k];
      });
      return { n, right };
    });
    let columns = classes.map((_, k) => k);
    if (columns.length > CLASSES_SHOWN) {
      const mean = (k) => counts.reduce((sum, c) => sum + (c.n[k] ? c.right[k] / c.n[k] : 1), 0);
      columns = columns.sort((a, b) => mean(a) - mean(b)).slice(0, CLASSES_SHOWN);
    }
    at("classes-note").textContent = (columns.length < classes.length ?
      `The ${CLASSES_SHOWN} of ${classes.length} classes with the lowest accuracy. ` : "") +
      "Per cent of the images of a class that are classified right; each run at its reported budget.";
    const size = (k) => Math.max(...counts.map((c) => c.n[k]));
    at("classes").replaceChildren(runs.length ? table(
      [column({}, "run"), ...columns.map((k) => column({ class: "n", title: className(classes[k], 60) }, className(classes[k]), el("small", {}, `n = ${grouped(size(k))}`)))],
      runs.map((r, i) => el("tr", {}, el("th", { scope: "row" }, nameOf(RUNS[r]), kind.value === "worst" ? doubt(RUNS[r]) : null),
        ...columns.map((k) => {
          const { n, right } = counts[i];
          if (!n[k]) return el("td", { class: "n" }, "–");
          const cell = el("td", { class: "n share", title: interval(right[k], n[k]) }, percent(right[k] / n[k], n[k]));
          cell.style.setProperty("--share", right[k] / n[k]);
          return cell;
        })))) : el("p", {}, "No run with these accuracies is shown."));
  }

  function onlyOne(runs) {
    const alone = new Map(runs.map((r) => [r, []]));
    let all = 0, none = 0, counted = 0;
    DATA.index.forEach((_, k) => {
      if (!runs.every((r) => opened[r].tested[k])) return;
      counted += 1;
      const wrong = runs.filter((r) => opened[r][kind.value].wrong[k]);
      if (wrong.length === 1) alone.get(wrong[0]).push(k);
      if (wrong.length === runs.length) all += 1;
      if (!wrong.length) none += 1;
    });
    const how = kind.value === "clean" ? "without an attack" : "in the worst case at each run's budget";
    at("only-note").textContent = runs.length < 2 ? "Show at least two runs, above." :
      `Of ${plural(counted, "example")}, ${how}, all ${runs.length} runs shown get ${grouped(none)} right and ${grouped(all)} wrong. ` +
      "Below are the examples that only one of them gets wrong: number, true class → predicted class.";
    const names = runs.filter((r) => !alone.get(r).length).flatMap((r, i) => [i ? ", " : "", shortName(RUNS[r])]);
    at("only").replaceChildren(...(runs.length < 2 ? [] : runs.filter((r) => alone.get(r).length).flatMap((r) => {
      const mine = alone.get(r);
      const classesOf = (k) => `${className(DATA.labels[k])} → ${className(opened[r][kind.value].as[k])}`;
      const head = el("h3", {}, shortName(RUNS[r]), `: ${grouped(mine.length)}`);
      const pictured = mine.filter((k) => DATA.pictures[DATA.index[k]]).slice(0, PICTURED);
      const first = pictured.length ? pictured : mine.slice(0, PICTURED);
      const item = (k) => el("li", {}, DATA.pictures[DATA.index[k]] ?
        el("img", { src: DATA.pictures[DATA.index[k]], alt: `test image ${DATA.index[k]}`, width: 56, height: 56 }) : null,
        `#${DATA.index[k]}`, el("br", {}), classesOf(k));
      const rest = mine.length > first.length ? el("details", {}, el("summary", {}, `All ${grouped(mine.length)} numbers`),
        el("p", { class: "numbers" }, mine.slice(0, LISTED).map((k) => `#${DATA.index[k]} (${classesOf(k)})`).join(", ") +
          (mine.length > LISTED ? `, and ${grouped(mine.length - LISTED)} more` : ""))) : null;
      return [head, el("ul", { class: "digits" }, ...first.map(item)), rest].filter(Boolean);
    })), runs.length > 1 && names.length ? el("p", { class: "quiet" }, "No such example: ", ...names) : "");
  }

  const paint = () => { const runs = usable(); perClass(runs); onlyOne(runs); };
  kind.addEventListener("change", paint);
  redraws.push(paint);
  paint();
}

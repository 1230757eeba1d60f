// Accuracy against distance: the lines of the runs shown, their names beside them, and a ruler that reads them off.
{
  const AXES = Object.keys(DATA.axes).filter((axis) => DATA.axes[axis].end > 0);
  const TOLERANCE = 1.001e-6; // of rounding, as in the table
  const roundedUp = (x, axis) => x + TOLERANCE * (axis === "l1" || axis === "l2" ? 1 + x : 1);
  const FEW = 4; // budgets that are listed one by one
  const SNAP = 6; // pixels from a budget within which the ruler snaps to it
  const view = at("view");
  view.append(...DATA.views.map((v, k) => el("option", { value: k }, v.name)));

  const ruler = {};
  for (const axis of AXES) {
    const run = RUNS.find((r) => r.worst && r.budget.norm === axis);
    ruler[axis] = run ? run.budget.eps : halfway(RUNS[ranked()[0]], axis);
  }

  // The points of a curve: distance, and how many examples are broken within it.
  function points({ steps }, axis) {
    let mark = 0, broken = 0;
    return Array.from({ length: steps.length / 2 }, (_, k) => [(mark += steps[2 * k]) * DATA.axes[axis].unit, broken += steps[2 * k + 1]]);
  }
  const lastOf = (found) => found[found.length - 1] || [0, 0];
  const brokenAt = (drawn, axis, x) => lastOf(points(drawn, axis).filter(([distance]) => distance <= roundedUp(x, axis)))[1];

  // The distance at which half of the examples are broken, to two digits; the middle of the axis where they never are.
  function halfway(run, axis) {
    const { end } = DATA.axes[axis];
    const half = points(run.curves[axis][0] || { steps: [] }, axis).find(([, broken]) => 2 * broken >= run.clean[1]);
    return half ? Math.min(end, Number(half[0].toPrecision(2))) : end / 2;
  }

  // Where a run's line ends: at its last broken example, or where the attack stopped searching if some are robust.
  function endOf(run, axis) {
    const drawn = line(run, axis);
    if (!drawn) return 0;
    const [last, broken] = lastOf(points(drawn, axis));
    return drawn.to !== null && broken < run.clean[1] ? Math.max(drawn.to, last) : last;
  }

  // A curve is exact at `at`: the budgets attacked in this distance, or everywhere (null), where an attack searched for
  // the nearest adversarial example in it. Elsewhere it is only an upper bound of the accuracy.
  const near = (a, b) => Math.abs(a - b) <= TOLERANCE;
  const exact = (drawn, x) => drawn.at === null || x <= TOLERANCE || drawn.at.some((budget) => near(x, budget));
  const unsearched = (drawn) => drawn.at !== null && !drawn.at.length;
  function attacked(run, drawn, x, axis) {
    if (unsearched(drawn)) {
      const own = run.attacks[view.value];
      return own ? `searched ${NORMS[own.norm]}` : `no attack in ${NORMS[axis]}`;
    }
    if (x > drawn.to + TOLERANCE) return `attacked to ${budgetText(drawn.to)}`;
    return drawn.at.length > FEW ? `${drawn.at.length} budgets to ${budgetText(drawn.to)}` : `attacked at ${drawn.at.map(budgetText).join(", ")}`;
  }

  function ticks(end, about) {
    const raw = end / about, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= raw) * power;
    return Array.from({ length: Math.floor(end / step + 1e-9) + 1 }, (_, k) => k * step);
  }

  const line = (run, axis) => run.curves[axis][view.value];

  // The legend shows and hides runs, and lists their accuracies at the rulers.
  const readouts = new Map();
  const swatches = new Map();
  const legendHeads = Object.fromEntries(AXES.map((axis) => [axis, column({ class: "n" })]));
  const swatch = (slot) => draw("svg", { width: 30, height: 10, "aria-hidden": "true" }, slot === undefined ? null :
    draw("line", { x1: 1, x2: 29, y1: 5, y2: 5, "stroke-width": 2.5, stroke: ink(slot), "stroke-dasharray": dash(slot) }));
  const boxes = RUNS.map((run, k) => el("input", { type: "checkbox", onchange: (event) => { show(k, event.target.checked); redraw(); } }));
  at("legend").append(table([column({}, "shown"), ...Object.values(legendHeads)], RUNS.map((run, k) => {
    readouts.set(k, Object.fromEntries(AXES.map((axis) => [axis, el("td", { class: "n" })])));
    swatches.set(k, el("span", {}));
    return el("tr", {}, el("th", { scope: "row" }, el("label", {}, boxes[k], swatches.get(k), el("span", {}, `${k + 1} `), el("span", {}, nameOf(run), doubt(run)))),
      ...Object.values(readouts.get(k)));
  })));
  const choose = (wanted) => () => { shown.clear(); wanted().forEach((k) => show(k, true)); redraw(); };
  const first = () => ranked().slice(0, FIRST_SHOWN).sort((a, b) => a - b);
  const attackedRuns = () => RUNS.map((_, k) => k).filter((k) => RUNS[k].attacked);
  at("choices").append(
    RUNS.length > FIRST_SHOWN ? el("button", { type: "button", onclick: choose(first) }, `Best ${FIRST_SHOWN}`) : "",
    el("button", { type: "button", onclick: choose(attackedRuns) }, "Show all"),
    el("button", { type: "button", onclick: choose(() => []) }, "Hide all"));

  const charts = Object.fromEntries(AXES.map((axis) => [axis, chart(axis)]));
  at("charts-note").textContent =
    "A line ends with a dot where its attack stopped searching or had broken every example; beyond it nothing is known. The line " +
    "of an attack without a bound continues thin, because the attack found nothing farther away. Where a line is thin and its " +
    "accuracy is given as ≤, it is only an upper bound: between the attacked budgets, which have dots and bars, and wherever no " +
    "attack searched this distance. The ruler snaps to the budgets." +
    (RUNS.some(doubted) ? " ✕: the figure is overstated." : "");
  at("charts").append(...AXES.map((axis) => charts[axis].node));

  function chart(axis) {
    let end = DATA.axes[axis].end;
    const name = `${NORMS[axis]} distance`;
    const caption = el("figcaption", {});
    const plot = draw("svg", { class: "plot", role: "img" });
    const slider = el("input", { type: "range", min: 0, max: 1000, step: 1, "aria-label": `Read off at ${name}`,
      oninput: () => { ruler[axis] = snapped((slider.value / 1000) * end, end / 2000); read(); } });
    const output = el("output", {});
    const node = el("figure", {}, caption, plot, el("p", { class: "ruler-control" }, el("span", {}, "read at"), slider, output));
    let scale = null, needle = null;
    const follow = (event) => {
      const x = event.clientX - plot.getBoundingClientRect().left;
      ruler[axis] = snapped(Math.min(end, Math.max(0, ((x - scale.left) / scale.width) * end)), (SNAP / scale.width) * end);
      read();
    };
    plot.addEventListener("pointermove", (event) => { if (scale && event.pointerType !== "touch") follow(event); });
    plot.addEventListener("click", follow);
    // The nearest budget of a run shown if it is within reach, as between budgets there is only an upper bound.
    function snapped(x, reach) {
      const budgets = shownRuns().flatMap((k) => (line(RUNS[k], axis) || {}).at || []).filter((b) => Math.abs(b - x) <= reach);
      return budgets.length ? budgets.reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a)) : x;
    }

    function read() {
      const x = Math.min(ruler[axis], end);
      slider.value = (x / end) * 1000;
      output.textContent = `${NORMS[axis]} ${short(x)}`;
      slider.setAttribute("aria-valuetext", `${name} ${short(x)}`);
      legendHeads[axis].replaceChildren("% at ", `${NORMS[axis]} ${short(x)}`);
      RUNS.forEach((run, k) => {
        const cell = readouts.get(k)[axis], drawn = line(run, axis);
        if (!drawn) return cell.replaceChildren(run.attacked ? "not run" : "–");
        const n = run.clean[1], right = n - brokenAt(drawn, axis, x);
        if (right && !exact(drawn, x)) {
          return cell.replaceChildren(`≤ ${percent(right / n)}`, el("small", {}, attacked(run, drawn, x, axis)));
        }
        return cell.replaceChildren(percent(right / n), el("small", {}, `[${wilson(right, n).map((bound) => percent(bound)).join(", ")}]`));
      });
      if (needle) {
        const at = scale.left + (x / end) * scale.width;
        needle.setAttribute("x1", at);
        needle.setAttribute("x2", at);
      }
    }

    function paint() {
      const width = Math.max(240, node.clientWidth), narrow = width < 460, height = narrow ? 260 : 320;
      const runs = shownRuns().filter((k) => line(RUNS[k], axis));
      end = Math.max(...runs.map((k) => endOf(RUNS[k], axis))) || DATA.axes[axis].end;
      if (!runs.length) end = DATA.axes[axis].end;
      const left = 38, right = narrow ? 46 : 173, top = 10, bottom = height - 40;
      scale = { left, width: width - left - right };
      const px = (x) => left + (x / end) * scale.width;
      const py = (share) => bottom - share * (bottom - top);
      const sizes = [...new Set(runs.map((k) => RUNS[k].clean[1]))].sort((a, b) => a - b);
      const n = sizes.length > 1 ? `n = ${grouped(sizes[0])} to ${grouped(sizes[sizes.length - 1])}` : sizes.length ? `n = ${grouped(sizes[0])}` : "no run shown";
      caption.textContent = `Accuracy against ${name}: ${DATA.views[view.value].name}, ${n}`;
      plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
      plot.setAttribute("height", height);
      plot.setAttribute("aria-label", `${caption.textContent}. The values are in the table above.`);
      plot.replaceChildren();
      for (const share of [0, 0.25, 0.5, 0.75, 1]) {
        plot.append(draw("line", { class: "grid", x1: left, x2: left + scale.width, y1: py(share), y2: py(share) }),
          draw("text", { class: "tick", x: left - 6, y: py(share) + 4, "text-anchor": "end" }, `${100 * share}`));
      }
      for (const x of ticks(end, narrow ? 4 : 6)) {
        plot.append(draw("line", { class: "grid", x1: px(x), x2: px(x), y1: bottom, y2: bottom + 5 }),
          draw("text", { class: "tick", x: px(x), y: bottom + 18, "text-anchor": "middle" }, short(x)));
      }
      plot.append(draw("text", { x: left + scale.width / 2, y: height - 5, "text-anchor": "middle" }, `${name} (pixel units)`),
        draw("text", { class: "tick", x: 0, y: 0, transform: `translate(10 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "accuracy (%)"));
      const ends = runs.map((k) => {
        const run = RUNS[k], drawn = line(run, axis), { to, at: budgets } = drawn, slot = shown.get(k), total = run.clean[1];
        let last = 0, lost = 0, path = "", upper = "", lower = [];
        const point = (x) => {
          const [low, high] = wilson(total - lost, total);
          const y = py((total - lost) / total).toFixed(1);
          path += path ? `H${x}V${y}` : `M${x} ${y}`;
          upper += upper ? `H${x}V${py(high).toFixed(1)}` : `M${x} ${py(high).toFixed(1)}`;
          lower.push([x, py(low).toFixed(1)]);
        };
        if (drawn.steps[0] !== 0) point(px(0).toFixed(1));
        for ([last, lost] of points(drawn, axis)) point(px(last).toFixed(1));
        if (to !== null && lost < total && to > last) { // it searched on, and found no more
          last = to;
          point(px(to).toFixed(1));
        }
        const back = lower.reverse().map(([x, y]) => `V${y}H${x}`).join("");
        const [x, y] = [px(last), py((total - lost) / total)];
        if (budgets === null) plot.append(draw("path", { d: `${upper}${back}Z`, fill: ink(slot), opacity: runs.length < 5 ? 0.15 : 0.07 }));
        plot.append(draw("path", { d: path, fill: "none", stroke: ink(slot), "stroke-width": budgets === null ? 2 : 1, "stroke-dasharray": dash(slot) }),
          draw("circle", { cx: x, cy: y, r: 3, fill: ink(slot) }));
        for (const budget of budgets || []) { // elsewhere the line is a bound, which has no interval
          if (budget > last + TOLERANCE) continue;
          const right = total - brokenAt(drawn, axis, budget), [low, high] = wilson(right, total);
          plot.append(draw("line", { x1: px(budget), x2: px(budget), y1: py(low), y2: py(high), stroke: ink(slot), "stroke-width": 4, opacity: 0.3 }),
            draw("circle", { class: "at", cx: px(budget), cy: py(right / total), r: 2.5, fill: ink(slot) }));
        }
        return { k, x, y, slot, on: to === null && lost < total };
      });
      const room = Math.max(6, Math.min(15, (bottom - top) / Math.max(1, ends.length - 1)));
      const places = spread(ends.map((e) => e.y), room, top, bottom);
      const edge = left + scale.width;
      ends.forEach(({ k, x, y, slot, on }, i) => {
        const number = `${k + 1}${doubted(RUNS[k]) ? "✕" : ""}${unsearched(line(RUNS[k], axis)) ? "≤" : ""}`;
        const label = narrow ? number : clipped(`${number} ${RUNS[k].name}`, 21);
        // Thin: the attack searched on without a bound and found nothing. Dotted: leads to the name.
        if (on) plot.append(draw("path", { d: `M${x} ${y}H${edge}`, fill: "none", stroke: ink(slot) }));
        plot.append(draw("path", { d: `M${on ? edge : x + 4} ${y}L${edge + 10} ${places[i]}`, fill: "none", stroke: ink(slot), opacity: 0.7, "stroke-dasharray": "1 4" }),
          draw("line", { x1: edge + 10, x2: edge + (narrow ? 20 : 28), y1: places[i], y2: places[i], stroke: ink(slot), "stroke-width": 2.5, "stroke-dasharray": dash(slot) }),
          draw("text", { x: edge + (narrow ? 22 : 31), y: places[i] + 4 }, label));
      });
      needle = draw("line", { class: "ruler", y1: top, y2: bottom });
      plot.append(needle);
      read();
    }
    return { node, paint };
  }

  // Move values apart by at least `gap`, in their order, within [low, high].
  function spread(values, gap, low, high) {
    const order = values.map((_, k) => k).sort((a, b) => values[a] - values[b]);
    const placed = [];
    let floor = low;
    for (const k of order) { placed[k] = Math.max(values[k], floor); floor = placed[k] + gap; }
    let ceiling = high;
    for (const k of order.reverse()) { placed[k] = Math.min(placed[k], ceiling); ceiling = placed[k] - gap; }
    return placed;
  }

  function paint() {
    RUNS.forEach((run, k) => {
      boxes[k].checked = shown.has(k);
      swatches.get(k).replaceChildren(swatch(shown.get(k)));
    });
    AXES.forEach((axis) => charts[axis].paint());
  }
  view.addEventListener("change", paint);
  redraws.push(paint);
  choose(RUNS.length > FIRST_SHOWN ? first : attackedRuns)();
  let before = 0;
  new ResizeObserver(() => {
    const width = at("charts").clientWidth;
    if (width !== before) { before = width; window.requestAnimationFrame(paint); }
  }).observe(at("charts"));
}

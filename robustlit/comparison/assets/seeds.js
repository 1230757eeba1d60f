// Runs that differ in the seed alone, and the differences between such groups.
if (DATA.seeds) {
  const { differences } = DATA.seeds, groups = DATA.seeds.groups.filter((g) => g.seeds.length > 1), n = DATA.index.length;
  const named = (name) => el("th", { scope: "row" }, el("bdi", { class: "name" }, name));
  const kinds = ["clean", "worst case", "certified"].filter((kind) => [...groups, ...differences].some((g) => g.figures[kind]));
  const range = (f) => f ? [percent(f.mean, n), el("small", {}, `[${percent(f.least, n)}, ${percent(f.largest, n)}]`)] : ["–"];
  const doubts = (g) => {
    const count = g.runs.filter((k) => doubted(RUNS[k])).length;
    return count ? el("small", { class: "flag" }, `✕ ${count} of ${g.runs.length} overstated`) : null;
  };
  const points = (x) => `${x > 0 ? "+" : x < 0 ? "−" : ""}${percent(Math.abs(x), n)}`;
  const apart = (f) => f ? [points(f.mean), el("small", {},
    f.low === null ? "equal in all seeds" : `[${points(f.low)}, ${points(f.high)}]`)] : ["–"];
  const cells = (kind, of) => el("td", { class: "n" }, ...of(kind));
  const heads = (first) => [column({}, first), column({}, "seeds"), ...kinds.map((kind) => column({ class: "n" }, kind))];
  at("seeds").hidden = false;
  at("groups").replaceChildren(table(heads("runs"), groups.map((g) => el("tr", {}, named(g.name),
    el("td", {}, g.seeds.join(", ")),
    ...kinds.map((kind) => cells(kind, (k) => [...range(g.figures[k]), k === "worst case" ? doubts(g) : null]))))));
  at("groups").hidden = at("groups-note").hidden = !groups.length;
  at("differences").hidden = !differences.length;
  at("differences-note").textContent = differences.length ? "First less second, in points, with a 95 % interval: Student's over the " +
    "seeds that both have, each paired with itself; with one common seed, over the test images, which says nothing of other seeds." : "";
  at("differences").replaceChildren(table(heads("first less second"), differences.map((d) => el("tr", {},
    named(`${d.a} − ${d.b}`), el("td", {}, d.seeds.join(", ")), ...kinds.map((kind) => cells(kind, (k) => apart(d.figures[k])))))));
}

// Settings that differ between the runs shown.
{
  const paint = () => {
    const runs = shownRuns().filter((k) => DATA.settings.every((s) => s.of[k] >= 0));
    const without = shownRuns().length - runs.length;
    const rows = DATA.settings.filter((s) => new Set(runs.map((k) => s.of[k])).size > 1);
    at("settings-note").textContent = (rows.length ?
      `${plural(rows.length, "key")} of config.yaml that ${rows.length === 1 ? "differs" : "differ"} between the runs shown.` :
      "None between the runs shown.") + (without ? ` ${plural(without, "run")} without a config.yaml.` : "");
    at("settings").hidden = !rows.length;
    at("settings").replaceChildren(table([column({}, "key"), ...runs.map((k) => column({}, nameOf(RUNS[k])))],
      rows.map((s) => el("tr", {}, el("th", { scope: "row" }, el("div", { class: "key" }, s.key)),
        ...runs.map((k) => el("td", {}, el("div", { class: "value" }, s.values[s.of[k]])))))));
  };
  redraws.push(paint);
  paint();
}

"""The model card of a run: what was trained, what was measured and how, and what was not, from its results.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from robustlit.checks import budget_text
from robustlit.results.certificates import probability_note
from robustlit.results.text import part_of_all, repeatable

NAME = "model_card.md"
_NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
_WITHOUT_GRADIENTS = ("Square", "WorstCase", "AutoAttack")  # attacks that are, or include, a search without gradients


def model_card(
    results: Mapping[str, Any], config: Mapping[str, Any], command: str | None, meta: Mapping[str, Any] | None = None,
    largest: Mapping[str, float] | None = None,
) -> str:  # fmt: skip
    """Return a run's model card as Markdown.

    Args:
        results: What results.json holds.
        config: The composed recipe, as plain containers.
        command: The command line, None where it is not known.
        meta: What the evaluation stores, of it the settings of the `attacks` and `certificates` by name.
        largest: Norm -> the largest budget that any attack ran at, in pixel units.
    """
    attacks, certificates = ((meta or {}).get(kind) or {} for kind in ("attacks", "certificates"))
    parts = [
        f"# {_cell(results['name'])}", _summary(results, certificates, command),
        "## What it is", _rows(_origin(results, config, command)),
        "## What was measured", _figures(results, {**attacks, **certificates}),
        "## What was not", _gaps(results, attacks, largest or {}),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _summary(results: Mapping[str, Any], certificates: Mapping[str, str], command: str | None) -> str:
    clean = f"{_share(results['clean'])} of {_images(results)} are classified correctly without an attack"
    worst, certified = results.get("worst_case"), results.get("certified")
    if worst is None:
        return f"{clean}. **It was not attacked at its budget: nothing is known about its robustness.**"
    where = _budget(worst)
    text = f"{clean}, **{_share(worst)} at {where}** under every attack below: an upper bound of its robustness."
    if certified is not None:
        text += f" {_share(certified)} are proven robust at {_budget(certified)}: a lower bound"
        text += f"{probability_note(certificates.values())}."
    if results.get("complete") is False:
        text += " The evaluation was cut short: other images may be easier or harder."
    verdict = results.get("verdict")
    if verdict is None:
        return f"{text} No verdict says whether the figure is believable: {_judging(results, command)}."
    counts = ", ".join(f"{verdict[k]} {k.lower()}" for k in ("PASS", "FAIL", "INCONCLUSIVE") if k in verdict)
    return f"{text} The {verdict['profile']} verdict calls that figure **{verdict['figure']}** ({counts})."


def _judging(results: Mapping[str, Any], command: str | None) -> str:
    """Return how to get a verdict; the folder of an evaluation has no checkpoint that could be attacked again."""
    if "train" in results["seconds"]:
        return "`robustlit evaluate RUN --verdict`"
    again = repeatable(command or "")
    return f"`{_cell(again)} --verdict`" if again else "the same evaluation with `--verdict`"


def _origin(
    results: Mapping[str, Any], config: Mapping[str, Any], command: str | None
) -> Iterator[tuple[str, str]]:  # fmt: skip
    yield "recipe", f"`{_cell(results['recipe'])}`"
    if command:
        yield "command", f"`{_cell(command)}`"
    for name in ("model", "defense", "objective"):
        settings = config.get(name)
        if isinstance(settings, Mapping) and settings.get("_target_"):
            yield {"model": "net"}.get(name, name), f"`{_cell(str(settings['_target_']))}`"
    foreign = results["recipe"] == "evaluate"  # robustlit did not train it
    if config.get("ckpt_path"):
        yield "net" if foreign else "checkpoint", f"`{_cell(str(config['ckpt_path']))}`"
    yield "parameters", f"{results['parameters']:,}".replace(",", " ")
    yield "data", f"{_cell(results['data'])}, {_images(results)}"
    of_the_attacks = "of the attacks; how the net was trained is not known here"
    yield "seed", f"{results['seed']}, {of_the_attacks if foreign else 'one: other seeds may differ by points'}"
    yield "seconds", ", ".join(f"{name} {value:g}" for name, value in results["seconds"].items())
    yield "device", _cell(str(results["device"]))
    yield "versions", ", ".join(f"{name} {value}" for name, value in results["versions"].items() if value)


def _figures(results: Mapping[str, Any], settings: Mapping[str, str]) -> str:
    heads = ["", "budget", "accuracy [95 % interval]", "n", "passes an image", "seconds, all budgets"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]

    def line(name: str, budget: str, found: Mapping[str, Any], seconds: float | str = "") -> None:
        spent = f"{found.get('passes', '')} | {seconds}"
        lines.append(f"| {_cell(name)} | {budget} | {_share(found)} | {found['n']} | {spent} |")

    for part in (results, results.get("all_images")):  # of the first images, and of all
        if part is None:
            continue
        seconds, end = part.get("attack_seconds", {}), "" if part is results else f", {part_of_all(part)}"
        line(f"clean{end}", "", part["clean"])
        for name, found in part.get("attacks", {}).items():
            if found["eps"] is None:
                median = "none found" if found["median"] is None else f"median {found['median']:.4g}"
                line(f"{name}{end}", f"{_NORMS[found['norm']]}, {median}", found, seconds.get(name, ""))
            else:
                line(f"{name}{end}", _budget(found), found, seconds.get(name, ""))
        if (worst := part.get("worst_case")) and len(worst["rests_on"]) > 1:
            line(f"worst case of {', '.join(worst['rests_on'])}", _budget(worst), worst)
        if certified := part.get("certified"):
            for name, found in certified["certificates"].items():
                line(f"proven by {name}{end}", _budget(certified), found, seconds.get(name, ""))
    listed = [f"- `{_cell(name)}`: `{_cell(text)}`" for name, text in settings.items()]
    return "\n".join(lines) + ("\n\n" + "\n".join(listed) if listed else "")


def _gaps(results: Mapping[str, Any], attacks: Mapping[str, str], largest: Mapping[str, float]) -> str:
    found = results.get("attacks", {})
    searched = {each["norm"] for each in found.values()}
    gaps: list[str] = []
    if not found:
        gaps.append("Any attack: see the recipe's `sweep`.")
    elif missing := [_NORMS[norm] for norm in _NORMS if norm not in searched]:
        gaps.append(f"Attacks in {', '.join(missing)}: a net that is robust in one norm need not be in another.")
    if largest:
        at = ", ".join(f"{_NORMS[norm]} {budget_text(eps)}" for norm, eps in sorted(largest.items()))
        gaps.append(f"Figures at budgets above {at}; smaller ones, where attacked, are in `evaluation/`.")
    if found and not any(text.startswith(_WITHOUT_GRADIENTS) for text in attacks.values()):
        gaps.append("Attacks without gradients (`sweep=worst_case`): a net that hides its gradients looks robust.")
    if found and results.get("certified") is None:
        gaps.append("A proof: the figures are upper bounds (`sweep=certified` gives a lower one where the net allows).")
    gaps.append("Corruptions, other data than the test split, and pictures that show none of the classes.")
    return "\n".join(f"- {gap}" for gap in gaps)


def _images(results: Mapping[str, Any]) -> str:
    of = results.get("of")
    chosen = f" of {of}, chosen class by class" if of is not None and of != results["n"] else ""
    return f"{results['n']} test images{chosen}"


def _budget(found: Mapping[str, Any]) -> str:
    return f"{_NORMS[found['norm']]} {budget_text(found['eps'])}"


def _share(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * found['accuracy']:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"


def _rows(pairs: Iterator[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in pairs)])


def _cell(text: str) -> str:
    """Return text as one line that ends no cell of a table and no code."""
    return " ".join(text.replace("|", "\\|").replace("`", "'").split())

"""What a study may be continued with: what may change between one search and the next, and what stays comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from optuna.trial import TrialState

from moldistill.core.artifacts import check_out, hash_object
from moldistill.core.config import read_yaml
from moldistill.core.errors import InputError
from moldistill.core.progress import log
from moldistill.search.generations import copied, fitted
from moldistill.search.ledger import Ledger
from moldistill.search.space import Space
from moldistill.search.study import SPACE, TRIALS, best_first

Mode = Literal["new", "resume", "extend"]

SAME_TRIALS = ("base", "fixed", "objective", "storage")
"""Keys without which trials could not be compared, or found again."""

FREE = ("budget", "failures", "keep", "replicates", "tracking")
"""Keys that change no trial, nor who is tried."""

MOST_STARTING_POINTS = 5


def check_folder(out: Path, space: Space, mode: Mode) -> Path:
    """Absolute form of the study's folder; InputError unless it is new, or a study that this space continues."""
    out = out.expanduser().absolute()
    begun = out / SPACE
    if mode == "new":
        if begun.is_file() and (out / TRIALS).is_dir():
            raise InputError(
                f"{out} holds a study",
                expected="a new folder",
                remedy="continue it with --resume, with another space or budget by --extend, or name another --out",
            )
        return check_out(out)
    if not begun.is_file():
        if out.is_dir() and all(entry.name.startswith(".") for entry in out.iterdir()):
            return out  # the earlier search ended before it wrote anything
        raise InputError(f"{out} holds no study to {mode}", expected=f"a folder with {SPACE}", remedy=f"drop --{mode}")
    _check_changes(out, changed_keys(read_yaml(begun), space.mapping), mode)
    return out


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys of the space that differ; of `resources`, how many trials run at once does not count.

    What a trial holds decides its number of threads, and so its last bits.
    """

    def comparable(mapping: Mapping[str, Any]) -> dict[str, Any]:
        held = {key: value for key, value in (mapping.get("resources") or {}).items() if key != "concurrent"}
        return {**mapping, "resources": held}

    earlier, later = comparable(before), comparable(now)
    return [key for key in later if hash_object(earlier.get(key)) != hash_object(later[key])]


def _check_changes(out: Path, changed: Sequence[str], mode: Mode) -> None:
    wrong = [key for key in changed if key in SAME_TRIALS]
    if wrong:
        raise InputError(
            f"{out} was begun with another search space, and its trials could not be compared",
            got="other values of " + ", ".join(wrong),
            expected=f"as in {out / SPACE}: {', '.join(SAME_TRIALS)}",
            remedy=f"start a new study with --warm-start {out}, which takes over what this one found",
        )
    other = [key for key in changed if key not in FREE]
    if other and mode == "resume":
        raise InputError(
            f"{out} was begun with another search space",
            got="other values of " + ", ".join(other),
            expected=f"the space in {out / SPACE} ({', '.join(FREE)} and resources.concurrent may change)",
            remedy="use --extend to change it, resume with that file, or start a new study",
        )
    if changed and mode == "extend":
        same = "trials before and after are compared at equal epochs, on the same rows, from the same base"
        log(f"extending {out.name}: other values of {', '.join(changed)}; {same}")
        if "resources" in changed:
            log("other resources: results of equal settings may differ in their last bits")


def warm_start(ledger: Ledger, sources: Sequence[Path], inputs: Mapping[str, str]) -> None:
    """Let a new study begin with what others found.

    Where a study went by the same metric, store, targets, base and fixed values, its trials are observations: the
    sampler learns from them, and they do not count. From any other one, the best configurations that fit the space are
    tried first.
    """
    for source in sources:
        other = Ledger.open(source)
        if other.space.metric != ledger.space.metric:
            raise InputError(
                f"{source} went by {other.space.metric}",
                expected=ledger.space.metric,
                remedy="name a study that went by the same metric",
            )
        if source.resolve() == ledger.out.resolve():
            raise InputError(f"{source} is the study itself", remedy="use --resume or --extend")
        mark = str(source.expanduser().absolute())
        if mark in ledger.study.user_attrs.get("warm", ()):
            continue
        if _same_trials(ledger, other, inputs):
            _observe(ledger, other, mark)
        else:
            _try_first(ledger, other)
        ledger.study.set_user_attr("warm", [*ledger.study.user_attrs.get("warm", ()), mark])


def _same_trials(ledger: Ledger, other: Ledger, inputs: Mapping[str, str]) -> bool:
    here, there = ledger.space.mapping, other.space.mapping
    same = all(hash_object(here[key]) == hash_object(there[key]) for key in ("base", "objective"))
    fixed = [{key: value for key, value in mapping["fixed"].items() if key != "targets"} for mapping in (here, there)]
    read = {kind: other.study.user_attrs.get(kind) for kind in ("store", "targets")}
    return same and fixed[0] == fixed[1] and read == {kind: inputs.get(kind) for kind in read}


def _observe(ledger: Ledger, other: Ledger, mark: str) -> None:
    """Show a study's trials to the sampler; a driver that dies here goes on where it was."""
    there = {
        trial.user_attrs["number"]
        for trial in ledger.study.get_trials(deepcopy=False)
        if trial.user_attrs.get("imported") == mark
    }
    shown = 0
    for trial in other.trials(TrialState.COMPLETE, TrialState.PRUNED):
        copy = copied(trial, ledger.space)
        if trial.number in there or not copy.params:
            continue
        copy.user_attrs = {"imported": mark, "number": trial.number, "parameters": trial.user_attrs["parameters"]}
        ledger.study.add_trial(copy)
        shown += 1
    log(f"the sampler knows {shown + len(there)} trials of {other.out.name}, which had the same data and base")


def _try_first(ledger: Ledger, other: Ledger) -> None:
    """Queue the best configurations of a study whose errors mean something else here."""
    queued = 0
    for row in best_first(other.rows()):
        found = fitted(ledger.space, row.parameters)
        if found and queued < MOST_STARTING_POINTS:
            ledger.study.enqueue_trial(found[0], skip_if_exists=True)
            queued += 1
    log(f"{other.out.name} had other data or another base: its {queued} best configurations that fit are tried first")

"""Looking at studies and tidying them up: list, show, clean and cancel, on real ledgers, without Ray and training."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from delivery_folders import make_store
from moldistill.cli import main
from moldistill.core.errors import InputError
from moldistill.core.locking import exclusive, is_held
from moldistill.data.store import Store
from moldistill.delivery import cancelling
from moldistill.delivery.cancelling import cancel
from moldistill.delivery.cleaning import Cleaning, clean
from moldistill.delivery.disk_use import human, kind_of
from moldistill.delivery.ensemble import ensemble
from moldistill.delivery.study_summary import summed_up
from moldistill.delivery.study_view import Listing, listing, ordered, read, studies_in
from moldistill.delivery.trial_view import trial_report
from moldistill.search.conductor import Conductor
from moldistill.search.ledger import Ledger
from moldistill.search.study import LOCK, SPACE, TrialRow
from moldistill.trial.cancel import CancelledError, CancelWatch, ask_to_cancel, is_cancelled
from moldistill.verbs.sections import plain
from moldistill.verbs.studies_view import KEYS, listed, short_names
from studies import EPOCHS, WEIGHT, open_ledger, raw_space, run_all, train
from study_folders import finish_study, leave, make_trials, stop


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture(scope="module")
def made(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three complete trials with checkpoints; then one stopped, one failed, and one under way."""
    ledger = make_trials(tmp_path_factory.mktemp("studies") / "study", store, (0.3, 0.2, 0.5), stopped=1)
    for row in ledger.rows()[:3]:
        _checkpoint(ledger.out / row.folder)
    conductor = Conductor(ledger, now=lambda: 0.0)
    failed, running = conductor.next(), conductor.next()
    assert failed is not None and running is not None
    leave(conductor, failed.number, failed.folder, epochs=2)
    conductor.end(
        failed.number, "failed", {"reason": "disk\nfull", "attempts": [{"reason": "disk full", "seconds": 4.0}]}
    )
    _checkpoint(failed.folder)  # the search has removed it
    leave(conductor, running.number, running.folder, epochs=1)
    return ledger.out


def _checkpoint(folder: Path) -> None:
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "step-9.pt").write_bytes(b"x" * 1000)


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    """A copy of one's own, which nobody runs."""
    return Path(shutil.copytree(made, tmp_path / "study"))


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def moldistill(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["moldistill", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return run


class TestLock:
    def test_held_and_freed(self, tmp_path: Path) -> None:
        lock = tmp_path / LOCK
        assert not is_held(lock)
        with exclusive(lock, "a test"):
            assert is_held(lock)
            assert is_held(lock)
        assert not is_held(lock)
        lock.touch()  # left by a process that was killed
        assert not is_held(lock)
        assert not is_held(tmp_path / "missing" / LOCK)

    def test_looking_keeps_nobody_out(self, tmp_path: Path) -> None:
        lock, done = tmp_path / LOCK, threading.Event()
        lookers = [threading.Thread(target=lambda: [is_held(lock) for _ in iter(done.is_set, True)]) for _ in range(3)]
        for looker in lookers:
            looker.start()
        try:
            for _ in range(200):
                with exclusive(lock, "a search"):
                    pass
                lock.touch()
        finally:
            done.set()
            for looker in lookers:
                looker.join()


class TestListing:
    def test_the_best_first(self, study: Path) -> None:
        found = listing(read(study))
        assert [row.number for row in found.trials] == [1, 0, 2, 3, 5, 4]
        states = ["complete", "complete", "complete", "pruned", "interrupted", "failed"]
        assert [row.state for row in found.trials] == states
        assert (found.of, found.keys, found.objectives) == (6, (WEIGHT,), ("valid_mae",))

    def test_sorted_and_chosen(self, study: Path) -> None:
        opened = read(study)
        assert [row.number for row in listing(opened, "number").trials] == list(range(6))
        assert [row.epochs for row in listing(opened, "epochs").trials] == [9, 9, 9, 3, 2, 1]
        assert [row.number for row in listing(opened, "number", ["failed", "pruned"]).trials] == [3, 4]
        assert [row.number for row in listing(opened, top=2).trials] == [1, 0]
        rows = [TrialRow(number, "complete", 0.1, {}, 1, "", seconds=float(number)) for number in range(3)]
        assert [row.number for row in ordered(rows, "seconds")] == [2, 1, 0]

    def test_running_is_who_holds_the_lock(self, study: Path) -> None:
        assert read(study).row(5).state == "interrupted"
        with exclusive(study / LOCK, "a search"):
            assert read(study).row(5).state == "running"
        assert read(study).row(5).state == "interrupted"

    def test_as_text(self) -> None:
        rows = (
            TrialRow(7, "complete", 0.12345, {"distill.atom.weight": 0.25, "model.width": 64}, 9, "", seconds=61.0),
            TrialRow(2, "pruned", 0.2, {"distill.atom.weight": 0.5, "model.width": 32}, 3, "", seconds=400.0),
            TrialRow(3, "failed", None, {"model.width": 128}, 0, "", reason="out of\nmemory"),
        )
        text = plain(list(listed(Listing("study", ("valid_mae",), ("distill.atom.weight", "model.width"), 8, rows))))
        assert text == (
            "study study: 3 of 8 trials\n"
            "trial     state  valid_mae, eV  epochs   time  atom.weight  model.width\n"
            "-----  --------  -------------  ------  -----  -----------  -----------\n"
            "7      complete         0.1235       9   61 s         0.25           64\n"
            "2        pruned         0.2000       3  7 min          0.5           32\n"
            "3        failed              -       0      -                       128\n"
            "\n"
            "why they failed or were cut short\n"
            "trial 3  out of memory\n"
        )

    def test_many_parameters_and_equal_tails(self) -> None:
        assert short_names(["a.b.c", "d.b.c", "b.c", "e.f"]) == ["a.b.c", "d.b.c", "b.c", "e.f"]
        rows = tuple(TrialRow(n, "complete", 0.1, {f"p.k{k}": n for k in range(KEYS + 3)}, 1, "") for n in range(2))
        opened = Listing("study", ("valid_mae",), tuple(f"p.k{k}" for k in range(KEYS + 3)), 2, rows)
        assert "3 more parameters differ" in plain(list(listed(opened)))

    def test_several_objectives(self, tmp_path: Path) -> None:
        raw = raw_space(objective=[{"metric": "valid_mae"}, {"metric": "cpu_seconds"}], scheduler={"name": "none"})
        conductor = Conductor(open_ledger(tmp_path / "study", raw))
        first, second = conductor.next(), conductor.next()
        assert first is not None and second is not None
        assert train(conductor, first) == "complete"
        assert train(conductor, second, until=4) == "left"
        found = listing(read(tmp_path / "study"))
        assert [(row.number, row.epochs) for row in found.trials] == [
            (0, EPOCHS),
            (1, 4),
        ]  # the folder tells the second's
        text = plain(list(listed(found)))
        assert "valid_mae, eV  CPU s" in text
        assert f"{EPOCHS:.1f}" in text
        whole = summed_up(read(tmp_path / "study"))
        assert whole.front == (0,) and [row.number for row in whole.top] == [0]
        assert whole.objectives == (("valid_mae", "minimize"), ("cpu_seconds", "minimize"))

    def test_a_folder_of_studies(self, study: Path, tmp_path: Path, moldistill: Command) -> None:
        shutil.copytree(study, tmp_path / "broken")
        (tmp_path / "broken" / SPACE).write_text("parameters: [")
        (tmp_path / "no study").mkdir()
        assert studies_in(tmp_path) == [tmp_path / "broken", study]
        ended = moldistill("list", tmp_path)
        assert ended.code == 0
        assert "2 studies" in ended.out and "cannot be read" in ended.out
        line = next(line for line in ended.out.splitlines() if line.startswith(str(study)))
        assert line.split()[1:6] == ["interrupted", "6", "1", "1", "0"]
        rows = json.loads(moldistill("list", tmp_path, "--json").out)
        assert [bool(row["problem"]) for row in rows] == [True, False]

    def test_while_it_is_written(self, tmp_path: Path) -> None:
        """After every step of a driver, a reader sees a whole study with the lock's truth."""
        out = tmp_path / "study"
        conductor = Conductor(open_ledger(out, raw_space(budget={"trials": 5}, sampler={"name": "random"})))
        seen = set[str]()
        with exclusive(out / LOCK, "a search"):
            while (proposal := conductor.next()) is not None:
                assert read(out).row(proposal.number).state == "running"
                train(conductor, proposal)
                row = read(out).row(proposal.number)
                assert row.state in ("complete", "pruned")
                seen |= {one.state for one in read(out).rows}
        assert seen <= {"complete", "pruned"}
        assert len(read(out).rows) == 5

    def test_a_database(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'trials.db'}"
        run_all(open_ledger(tmp_path / "study", raw_space(budget={"trials": 3}, storage=url)))
        opened = read(tmp_path / "study")
        assert len(opened.rows) == 3
        assert summed_up(opened).storage == url
        assert trial_report(opened, 0).trial.number == 0


class TestShow:
    def test_at_a_glance(self, study: Path) -> None:
        found = summed_up(read(study))
        assert found.state == "interrupted"
        assert found.counts == {"complete": 3, "pruned": 1, "failed": 1, "running": 0, "interrupted": 1}
        assert found.best is not None and found.best.number == 1
        assert found.failures == (("disk\nfull", 1),)
        assert [(one.what, one.used, one.allowed) for one in found.budget] == [("trials", 5, 8), ("hours", 0, None)]
        assert found.epochs == 9 * 3 + 3 + 2 + 1
        assert found.full_epochs == found.epochs + 6  # the stopped one's; failures save nothing
        assert found.driver is not None and found.driver.pid == os.getpid()
        files = [path for path in study.rglob("*") if path.is_file()]
        assert sum(use.files for use in found.disk) == len(files)
        assert sum(use.bytes for use in found.disk) == sum(path.stat().st_size for path in files)
        assert {use.kind: use.bytes for use in found.disk}["checkpoints"] == 6000

    def test_the_next_command(self, study: Path, store: Store) -> None:
        assert summed_up(read(study)).following == (
            f"moldistill search {study / SPACE} --store {store.path} --out {study} --resume"
        )
        with exclusive(study / LOCK, "a search"):
            found = summed_up(read(study))
            assert (found.state, found.following) == ("running", f"moldistill list {study}")
        finish_study(Ledger.open(study))
        found = summed_up(read(study))
        assert (found.state, found.following) == ("finished", f"moldistill ensemble {study} --out ensemble")

    def test_passwords_are_not_shown(self, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = read(study)
        space = opened.ledger.space
        from dataclasses import replace

        hidden = replace(space, options=replace(space.options, storage="postgresql://me:secret@host/name"))
        monkeypatch.setattr(opened.ledger, "space", hidden)
        assert summed_up(opened).storage == "postgresql://me:…@host/name"

    def test_finalists_on_the_way_and_at_the_end(self, store: Store, tmp_path: Path) -> None:
        from delivery_folders import make_run, predicted

        asked = {"top": 2, "seeds": 2}
        ledger = make_trials(tmp_path / "study", store, (0.3, 0.2, 0.5), replicates=asked)
        out = ledger.out
        assert summed_up(read(out)).missing == 4
        for trial, seed in ((1, 1), (1, 2), (0, 1), (2, 1)):  # the last is no finalist any more
            folder = out / "finalists" / f"{trial:04d}-seed{seed}"
            make_run(folder, store, predicted(store, noise=0.2 + 0.1 * trial, seed=50 + seed))
        (out / "finalists" / "0000-seed2").mkdir()
        found = summed_up(read(out))
        assert found.missing == 1 and found.finals is not None
        assert [(one.trial, len(one.values)) for one in found.finals.finalists] == [(0, 1), (1, 2)]
        rows = [
            {"trial": t, "seed": s, "folder": "", "value": 0.1 + 0.1 * t + 0.01 * s} for t in (0, 1) for s in (1, 2)
        ]
        finish_study(ledger, rows)
        found = summed_up(read(out))
        assert found.missing == 0 and found.finals is not None and found.finals.winner == 0
        assert found.finals.finalists[1].searched == read(out).row(1).value

    def test_a_trial(self, study: Path) -> None:
        found = trial_report(read(study), 1)
        assert found.finished and found.allowed == EPOCHS and found.parameters == 12_345
        assert len(found.curve) == EPOCHS
        by_key = {one.key: one for one in found.settings}
        assert by_key[WEIGHT].origin == "searched" and by_key[WEIGHT].value == found.trial.parameters[WEIGHT]
        assert (by_key["training.epochs"].origin, by_key["training.epochs"].value) == ("fixed", EPOCHS)
        assert list(by_key) == [WEIGHT, "training.epochs"]
        assert not trial_report(read(study), 3).finished

    def test_terms_that_do_nothing_are_named(self, study: Path) -> None:
        record = {"epoch": 10, "valid_mae": 0.1, "share_label": 0.9999, "share_graph": 0.0001}
        for epoch in (10, 11):
            with (study / "trials/0001/metrics.jsonl").open("a") as stream:
                stream.write(json.dumps(record | {"epoch": epoch}) + "\n")
        found = trial_report(read(study), 3)
        assert found.warnings == ()
        shutil.copy(study / "trials/0001/metrics.jsonl", study / "trials/0003/metrics.jsonl")
        ((epoch, text),) = trial_report(read(study), 3).warnings
        assert epoch == 10 and "'graph' does nothing" in text

    def test_figures_that_are_no_numbers(self, study: Path, moldistill: Command) -> None:
        """A diverged loss is kept in the records, and JSON knows no NaN."""
        with (study / "trials/0004/metrics.jsonl").open("a") as stream:
            stream.write('{"epoch": 3, "train_loss": NaN, "valid_mae": Infinity}\n')
        told = moldistill("show", study, 4, "--json").out
        last = json.loads(told, parse_constant=lambda name: pytest.fail(name))["curve"][-1]
        assert last == {"epoch": 3, "train_loss": None, "valid_mae": None}
        assert ["3", "-", "-"] in [line.split() for line in moldistill("show", study, 4).out.splitlines()]

    def test_as_text_and_json(self, study: Path, moldistill: Command) -> None:
        shown = moldistill("show", study)
        assert shown.code == 0
        for words in ("interrupted: no search runs it", "5 of 8", "best trials", "disk full       1", "checkpoints"):
            assert words in shown.out
        assert "next:  moldistill search" in shown.err
        assert json.loads(moldistill("show", study, "--json").out)["best"]["number"] == 1
        one = moldistill("show", study, 4)
        for words in ("disk full", "attempt 1  disk full (after 4 s)", "2 of 9", "not finished"):
            assert words in one.out
        assert json.loads(moldistill("show", study, 4, "--json").out)["trial"]["state"] == "failed"
        compared = moldistill("compare", study, 0, 1)
        assert compared.out.startswith("Trial 1 is better than trial 0 by ")
        assert json.loads(moldistill("compare", study, 0, 1, "--json").out)["over_molecules"]["rows"] == 300

    def test_errors(self, study: Path, tmp_path: Path, moldistill: Command) -> None:
        for arguments, words in (
            (("show", tmp_path / "missing"), "does not exist"),
            (("show", tmp_path), "holds no study"),
            (("list", tmp_path / "missing"), "does not exist"),
            (("list", study / "trials"), "holds no study"),
            (("show", study, 17), "0 to 5"),
            (("compare", study, 0, 17), "has no trial 17"),
            (("clean", tmp_path), "holds no study"),
            (("cancel", study, 17), "has no trial 17"),
        ):
            ended = moldistill(*arguments)
            assert ended.code == 2, ended
            assert words in ended.err and "remedy" in ended.err and "Traceback" not in ended.err
            assert ended.out == ""

    def test_numbers_that_are_no_trials(self, study: Path) -> None:
        """Refused configurations and another study's trials have numbers, too."""
        ledger = Ledger.open(study)
        ledger.study.add_trial(
            optuna.trial.create_trial(value=0.1, user_attrs={"imported": "elsewhere", "parameters": {}, "number": 3})
        )
        refused = ledger.study.ask()
        refused.set_user_attr("refused", "width 60 does not divide by 7 heads")
        ledger.study.tell(refused, state=optuna.trial.TrialState.FAIL)
        opened = read(study)
        assert len(opened.rows) == 6
        with pytest.raises(InputError, match="elsewhere"):
            opened.row(6)
        with pytest.raises(InputError, match="never trained: width 60"):
            opened.row(7)


class TestClean:
    def removed(self, study: Path, **keywords: Any) -> tuple[Cleaning, set[str]]:
        found = clean(study, **keywords)
        return found, {removal.path for removal in found.removed}

    def test_beyond_the_best(self, study: Path) -> None:
        before = {path: path.stat().st_size for path in study.rglob("*") if path.is_file()}
        planned, paths = self.removed(study, keep=1, dry_run=True)
        assert {path: path.stat().st_size for path in study.rglob("*") if path.is_file()} == before
        # Trial 3 was stopped and waits for its predictions, trial 5 was interrupted.
        assert paths == {f"trials/{number:04d}/checkpoint" for number in (0, 2, 4)}
        found, again = self.removed(study, keep=1)
        assert again == paths and found.bytes == planned.bytes == 3000
        left = {path for path in study.rglob("*") if path.is_file()}
        gone = {path.relative_to(study) for path in before.keys() - left}
        assert gone == {Path(path) / "step-9.pt" for path in paths}
        assert not (study / "trials/0000/checkpoint").exists()
        assert found.lost == (
            "train longer from where they ended: trials 0, 2 (weights and predictions stay)",
            "go on with failed trials 4",
        )
        assert found.stays == (
            "checkpoints of the best trials stay: 1",
            "stopped trials whose predictions are still to be made keep theirs: 3",
            "interrupted trials keep theirs, --resume goes on from them: 5",
        )
        assert clean(study, keep=1).removed == ()

    def test_by_default_as_the_space_says(self, study: Path) -> None:
        found, paths = self.removed(study)
        assert found.keep == 10
        assert paths == {"trials/0004/checkpoint"}

    def test_an_ensemble_can_still_be_made(self, store: Store, tmp_path: Path) -> None:
        ledger = make_trials(tmp_path / "study", store, (0.3, 0.2, 0.25))
        finish_study(ledger)
        for row in ledger.rows():
            _checkpoint(ledger.out / row.folder)
        first = ensemble([ledger.out], tmp_path / "first")
        assert len(clean(ledger.out, keep=0).removed) == 3
        second = ensemble([ledger.out], tmp_path / "second")
        assert [member.weight for member in first.members] == [member.weight for member in second.members]

    def test_what_a_stopped_trial_can_no_longer_do(self, store: Store, tmp_path: Path) -> None:
        ledger = make_trials(tmp_path / "study", store, (0.3, 0.2), stopped=2, keep=1)
        for row in ledger.rows()[2:]:
            shutil.rmtree(ledger.out / row.folder / "checkpoint", ignore_errors=True)
            _checkpoint(ledger.out / row.folder)
        found = clean(ledger.out)
        assert found.lost == ("make predictions of, or go on with, stopped trials 2 to 3 (their curves stay)",)

    def test_leftovers(self, study: Path) -> None:
        (study / ".tune" / "tune").mkdir(parents=True)
        (study / ".tune" / "tune" / "state.json").write_bytes(b"x" * 50)
        (study / ".tune" / ".state.abc.partial").write_bytes(b"x" * 50)
        (study / "trials" / "0001" / ".weights.safetensors.abc.partial").write_bytes(b"x" * 70)
        (study / "trials" / "0005" / "checkpoint" / ".step-12.pt.abc.partial").write_bytes(b"x" * 5)
        found, paths = self.removed(study, keep=10)
        assert paths == {".tune", "trials/0001/.weights.safetensors.abc.partial", "trials/0004/checkpoint"}
        assert found.bytes == 100 + 70 + 1000
        assert not (study / ".tune").exists()

    def test_finalists(self, study: Path) -> None:
        for name, finished in (("0001-seed1", True), ("0001-seed2", False)):
            (study / "finalists" / name).mkdir(parents=True)
            _checkpoint(study / "finalists" / name)
            if finished:
                (study / "finalists" / name / "manifest.json").write_text("{}")
        found, paths = self.removed(study)
        assert "finalists/0001-seed1/checkpoint" in paths
        assert (study / "finalists/0001-seed2/checkpoint").is_dir()  # --resume goes on from it
        assert any("finalists longer" in sentence for sentence in found.lost)

    def test_refused_while_a_search_runs(self, study: Path) -> None:
        with exclusive(study / LOCK, "a search"), pytest.raises(InputError, match=f"process {os.getpid()} on "):
            clean(study, keep=0)
        assert (study / "trials/0000/checkpoint").is_dir()

    def test_a_search_is_refused_meanwhile(self, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from moldistill.delivery import cleaning

        held = []
        remove = cleaning._remove
        monkeypatch.setattr(cleaning, "_remove", lambda path: (held.append(is_held(study / LOCK)), remove(path)))
        clean(study, keep=1)
        assert held == [True] * 3
        assert not is_held(study / LOCK)

    def test_the_verb(self, study: Path, moldistill: Command) -> None:
        ended = moldistill("clean", study, "--keep", 1, "--dry-run")
        assert "would free 3.0 kB in 3 places" in ended.err and ended.out == ""
        assert "can then no longer be done" in ended.err
        told = json.loads(moldistill("clean", study, "--keep", 1, "--json").out)
        assert told["bytes"] == 3000

    def test_sizes_and_kinds(self) -> None:
        assert [human(count) for count in (0, 999, 1000, 2_500_000, 3 * 10**9)] == [
            "0 bytes", "999 bytes", "1.0 kB", "2.5 MB", "3.0 GB",
        ]  # fmt: skip
        kinds = {
            "trials/0001/checkpoint/step-3.pt": "checkpoints",
            "trials/0001/predictions/valid.npz": "predictions",
            "trials/0001/weights.safetensors": "weights",
            "trials/0001/metrics.jsonl": "records",
            "optuna.journal": "storage",
            "trials.db": "storage",
            ".tune/a/b": "leftovers",
            "trials/0001/.config.yaml.x.partial": "leftovers",
        }
        assert {path: kind_of(Path(path)) for path in kinds} == kinds


class TestCancel:
    def test_a_running_trial(self, study: Path, moldistill: Command) -> None:
        folder = study / "trials/0005"
        with exclusive(study / LOCK, "a search"):
            ended = moldistill("cancel", study, 5)
            assert ended.code == 0 and "trial 5 is asked to end" in ended.err
            assert is_cancelled(folder)
            assert "already" in cancel(study, 5)

    def test_one_that_has_only_been_proposed(self, tmp_path: Path) -> None:
        conductor = Conductor(open_ledger(tmp_path / "study"))
        proposal = conductor.next()
        assert proposal is not None and not proposal.folder.exists()
        with exclusive(tmp_path / "study" / LOCK, "a search"):
            cancel(tmp_path / "study", proposal.number)
        assert is_cancelled(proposal.folder)

    @pytest.mark.parametrize(
        ("number", "words"),
        [
            (1, "trial 1 has ended"),
            (3, "pruned after 3 epochs"),
            (4, "failed after 2 epochs: disk"),
            (5, "no search runs"),
        ],
    )
    def test_refused(self, study: Path, number: int, words: str) -> None:
        with pytest.raises(InputError) as caught:
            cancel(study, number)
        assert words in str(caught.value)
        assert not is_cancelled(study / f"trials/{number:04d}")

    def test_a_trial_that_ends_meanwhile_keeps_no_mark(self, store: Store, tmp_path: Path, monkeypatch: Any) -> None:
        """A mark that nobody saw would end whoever continues the run."""
        ledger = make_trials(tmp_path / "study", store, ())
        conductor = Conductor(ledger)
        proposal = conductor.next()
        assert proposal is not None
        asked = cancelling.ask_to_cancel

        def late(folder: Path) -> None:
            asked(folder)
            stop(conductor, proposal.number, proposal.folder, epochs=2)

        monkeypatch.setattr(cancelling, "ask_to_cancel", late)
        with exclusive(ledger.out / LOCK, "a search"), pytest.raises(InputError, match="has ended"):
            cancel(ledger.out, proposal.number)
        assert not is_cancelled(proposal.folder)


def test_a_trial_that_ends_by_its_mark_at_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conductor = Conductor(make_trials(tmp_path / "study", store, ()))
    proposal = conductor.next()
    assert proposal is not None
    asked = cancelling.ask_to_cancel

    def quick(folder: Path) -> None:
        asked(folder)
        error = CancelledError(f"{folder} was cancelled")
        conductor.end(proposal.number, "cancelled", {"reason": error.what})

    monkeypatch.setattr(cancelling, "ask_to_cancel", quick)
    with exclusive(tmp_path / "study" / LOCK, "a search"):
        assert cancel(tmp_path / "study", proposal.number) == "trial 0 has ended, as asked"
    assert is_cancelled(proposal.folder)


def test_the_word_that_a_cancelled_run_ends_with(tmp_path: Path) -> None:
    ask_to_cancel(tmp_path)
    with pytest.raises(CancelledError) as caught:
        CancelWatch(tmp_path).look()
    assert caught.value.what.endswith(cancelling.CANCELLED)


def test_help_has_an_example(moldistill: Command) -> None:
    for verb in ("list", "show", "compare", "clean", "cancel"):
        assert f"moldistill {verb} study" in " ".join(moldistill(verb, "--help").out.split())

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delivery_folders import SHARES, make_run, make_store, make_study, predicted
from manifests import edit_manifest
from moldistill.core.errors import InputError
from moldistill.data.store import Store
from moldistill.delivery.ensemble import ensemble
from moldistill.delivery.importance import parameter_importance
from moldistill.delivery.report import ReportInputs, report
from moldistill.delivery.shares import share_figures
from moldistill.delivery.submission import submission

HOSTILE = "</td><script>alert('x')</script>&amp;"
VOID = {"meta", "br", "link", "img", "hr", "input", "path", "use"}


class Page(HTMLParser):
    """Collects tags, ids, headings and text, and checks that tags are closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == "h2":
            self.headings.append(data)
        if self.stack and self.stack[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def ids(self) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get("id"))]

    def check_alone(self) -> None:
        """Nothing is fetched, nothing runs, ids are unique, links lead somewhere, figures and tables are named."""
        assert len(self.ids) == len(set(self.ids))
        for tag, attrs in self.tags:
            assert tag not in ("script", "link", "img", "iframe", "object")
            assert not any(name.startswith("on") for name in attrs)
            for name in ("href", "src", "xlink:href"):
                target = attrs.get(name)
                assert target is None or (target.startswith("#") and target[1:] in self.ids), target
            for place in re.findall(r"url\(([^)]*)\)", " ".join(str(value) for value in attrs.values())):
                assert place[1:] in self.ids
            if tag == "svg":
                assert attrs["role"] == "img"
            if tag in ("svg", "table"):
                assert all(name in self.ids for name in str(attrs["aria-labelledby"]).split())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("data") / "store")


def trials(count: int, *, params: Any = None) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {
            "state": ("complete", "complete", "pruned")[place % 3] if place != 7 else "failed",
            "noise": float(random.uniform(0.2, 0.6)),
            "epochs": 3 + place % 4,
            "params": params or {"distill.atom.weight": float(random.uniform(0, 1)), "kind": f"k{place % 2}"},
        }
        for place in range(count)
    ]


@pytest.fixture(scope="module")
def folders(store: Store, tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    root = tmp_path_factory.mktemp("folders")
    study = make_study(root / "study", store, trials(15))
    student = make_run(root / "student", store, predicted(store, noise=0.6, seed=90))
    positions = {"valid-3d": predicted(store, noise=0.1, seed=91)["valid-3d"]}
    teacher = make_run(
        root / "teacher", store, positions, role="teacher", facts={"metrics": {"epoch": 5, "valid_3d_mae": 0.081}}
    )
    ensemble([study], root / "ensemble")
    submission(root / "ensemble", store.path, root / "submission")
    return ReportInputs(
        teacher=teacher,
        student=student,
        study=study,
        ensemble=root / "ensemble",
        submission=root / "submission",
        store=store.path,
    )


def test_the_whole_way_has_every_section(folders: ReportInputs, tmp_path: Path) -> None:
    path = report(folders, tmp_path / "report.html")
    page = Page(path)
    page.check_alone()
    assert page.headings == [
        "What was done",
        "Stages compared",
        "Ensemble",
        "Search",
        "Runs",
        "Submission",
        "Versions",
    ]
    for words in (
        "Median predictor",
        "Teacher",
        "Student alone",
        "Best trial",
        "Ensemble of",
        "0.0810",
        "stopped early",
    ):
        assert words in page.text
    for title in (
        "Search history",
        "Learning curves",
        "What mattered",
        "Prediction against label",
        "Error by molecule",
    ):
        assert title in page.text
    assert path.stat().st_size < 2_000_000
    assert not re.search(r"https?://", path.read_text())
    assert "prefers-color-scheme: dark" in path.read_text()
    assert page.text.count("passed") >= 14


def test_the_page_says_the_interval_of_the_ensemble(folders: ReportInputs, tmp_path: Path) -> None:
    from moldistill.delivery.ensemble import load_ensemble

    assert folders.ensemble is not None
    score = load_ensemble(folders.ensemble).score
    text = Page(report(folders.ensemble, tmp_path / "report.html")).text
    assert f"{score.value:.4f} eV" in text
    assert f"95% interval {score.low:.4f} to {score.high:.4f}" in text


def test_equal_input_gives_an_equal_page(folders: ReportInputs, tmp_path: Path) -> None:
    first, second = (report(folders, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


@pytest.mark.parametrize("kind", ["teacher", "student", "study", "ensemble"])
def test_a_bare_folder_has_a_report(folders: ReportInputs, tmp_path: Path, kind: str) -> None:
    page = Page(report(getattr(folders, kind), tmp_path / "report.html"))
    page.check_alone()
    assert "What was done" in page.headings
    assert {"study": "Search", "ensemble": "Ensemble"}.get(kind, "Runs") in page.headings


def test_words_of_others_are_escaped(store: Store, tmp_path: Path) -> None:
    study = make_study(tmp_path / "study<b>", store, trials(9, params={HOSTILE: HOSTILE}))
    (study / "space.yaml").write_text(HOSTILE)
    edit_manifest(study, lambda manifest: manifest["files"]["space.yaml"].update(size=len(HOSTILE)))
    path = report(study, tmp_path / "report.html")
    page = Page(path)
    page.check_alone()
    assert "<script" not in path.read_text()
    assert HOSTILE in page.text


def test_without_a_store_the_saved_figures_are_shown(store: Store, tmp_path: Path) -> None:
    lost = {"store_path": str(tmp_path / "gone")}
    run = make_run(tmp_path / "run", store, predicted(store, noise=0.3, seed=1), facts=lost)
    page = Page(report(run, tmp_path / "report.html"))
    page.check_alone()
    assert "on valid" in page.text
    assert "Median predictor" not in page.text


def test_a_study_without_results_still_has_a_page(store: Store, tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", store, [{"state": "failed", "epochs": 1}, {"state": "pruned", "epochs": 1}])
    page = Page(report(study, tmp_path / "report.html"))
    page.check_alone()
    assert "None of the 2 trials came to an end" in page.text


def test_large_study_stays_small_and_quick(store: Store, tmp_path: Path) -> None:
    states = [{"state": "complete" if place == 0 else "pruned", "epochs": 20} for place in range(200)]
    study = make_study(tmp_path / "study", store, states)
    assert report(study, tmp_path / "report.html").stat().st_size < 2_000_000


def test_other_folders_and_places_are_refused(store: Store, folders: ReportInputs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no report"):
        report(store.path, tmp_path / "report.html")
    with pytest.raises(InputError, match="does not exist"):
        report(tmp_path / "missing", tmp_path / "report.html")
    assert folders.study is not None
    with pytest.raises(InputError, match="is a folder"):
        report(folders.study, tmp_path)


def test_importance_finds_what_matters() -> None:
    random = np.random.default_rng(0)
    tried = [
        ({"weight": w, "noise": n, "kind": k, "fixed": 1}, 0.1 + w**2 + (0.2 if k == "bad" else 0.0))
        for w, n, k in zip(random.random(60), random.random(60), random.choice(["good", "bad"], 60), strict=True)
    ]
    found = parameter_importance(tried)
    assert found is not None
    shares = dict(found[0])
    assert set(shares) == {"weight", "noise", "kind"}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["weight"] > 0.5 > 0.15 > shares["noise"]


def test_importance_without_fanova_and_without_enough_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = [({"weight": float(w), "kind": "ab"[w % 2]}, float(w)) for w in range(10)]
    assert parameter_importance(tried[:7]) is None
    assert parameter_importance([({"weight": float(w)}, 1.0) for w in range(10)]) is None

    def absent(*_: object) -> None:
        raise ImportError("scikit-learn")

    monkeypatch.setattr("moldistill.delivery.importance._fanova", absent)
    found = parameter_importance(tried)
    assert found is not None
    assert found[1] == "rank correlation"
    assert dict(found[0])["weight"] > 0.9


def test_what_drives_the_student_over_epochs_and_sizes() -> None:
    told = {"epoch": 1, **SHARES}
    figures = share_figures([told, {"epoch": 2}, told | {"epoch": 3}])
    assert [figure.title for figure in figures] == [
        "What drives the student",
        "What drives the student, by heavy atoms",
    ]
    assert all(term in figure.svg for figure in figures for term in ("label", "atom"))
    assert len(share_figures([{"epoch": 1, "share_label": 1.0}])) == 1
    assert share_figures([{"epoch": 1}]) == []


def finals_of(study: Path) -> list[dict[str, Any]]:
    """Three finalists over four seeds: the search's best is no better than the next, and the third is worse."""
    from moldistill.core.artifacts import read_manifest

    done = [trial for trial in read_manifest(study, "study").facts["trials"] if trial["state"] == "complete"]
    top = sorted(done, key=lambda trial: trial["value"])[:3]
    levels, luck = (0.2, 0.2005, 0.3), np.random.default_rng(0).normal(0, 0.003, (3, 4))
    return [
        {"trial": trial["number"], "seed": seed, "folder": "", "value": float(level + luck[place, seed - 1])}
        for place, (trial, level) in enumerate(zip(top, levels, strict=True))
        for seed in (1, 2, 3, 4)
    ]


def test_finalists_have_a_section(store: Store, tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", store, trials(12))
    rows = finals_of(study)
    edit_manifest(study, lambda manifest: manifest["facts"].update(finalists=rows))
    page = Page(report(study, tmp_path / "report.html"))
    page.check_alone()
    assert "Finalists" in page.headings
    best, _, third = list(dict.fromkeys(row["trial"] for row in rows))
    assert f"is better than trial {third}, by " in page.text  # at the head of the page, and in the section
    assert page.text.count("cannot be told from trial") == 2
    assert "Finalists over fresh seeds" in page.text
    assert f"trial {best}" in page.text
    assert "t-intervals over seeds" in page.text
    assert "too good in the mean" in page.text or "too bad in the mean" in page.text


def test_finalists_that_all_failed_still_have_a_page(store: Store, tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", store, trials(4))
    rows = [{"trial": 0, "seed": seed, "folder": "", "value": None} for seed in (1, 2)]
    edit_manifest(study, lambda manifest: manifest["facts"].update(finalists=rows))
    page = Page(report(study, tmp_path / "report.html"))
    page.check_alone()
    assert "No finalist came to an end." in page.text


@pytest.mark.parametrize("further", [("parameters",), ("parameters", "cpu_seconds")])
def test_several_objectives_have_a_front(store: Store, tmp_path: Path, further: tuple[str, ...]) -> None:
    study = make_study(tmp_path / "study", store, trials(9))
    objectives = [{"metric": metric, "direction": "minimize"} for metric in ("valid_mae", *further)]

    def several(manifest: dict[str, Any]) -> None:
        facts = manifest["facts"]
        done = [trial for trial in facts["trials"] if trial["state"] == "complete"]
        for place, trial in enumerate(done):
            trial["values"] = [trial["value"], *(1000.0 * (1 + place) for _ in further)]
        best = min(done, key=lambda trial: trial["value"])["number"]
        facts.update(objectives=objectives, front=sorted({done[0]["number"], best}), gpu_hours=1.25)

    edit_manifest(study, several)
    page = Page(report(study, tmp_path / "report.html"))
    page.check_alone()
    assert "Trade-off" in page.headings
    assert page.text.count("the front is joined") == 2 * len(further)  # the caption is told to those who hear, too
    assert "MAE on valid against parameters" in page.text
    assert "The front is bold." in page.text
    assert "1.25 GPU-hours" in page.text
    assert ("CPU seconds" in page.text) == ("cpu_seconds" in further)


def test_failures_are_told_by_reason(store: Store, tmp_path: Path) -> None:
    failed = [{"state": "failed", "epochs": 1, "reason": reason} for reason in (HOSTILE, HOSTILE, "disk full", None)]
    study = make_study(tmp_path / "study", store, [*trials(4), *failed])
    page = Page(report(study, tmp_path / "report.html"))
    page.check_alone()
    assert f"{HOSTILE} 2" in page.text
    assert "disk full 1" in page.text
    assert "no reason was kept 1" in page.text


def test_a_best_trial_whose_folder_was_not_finished(store: Store, tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", store, trials(6))
    for manifest in study.glob("trials/*/manifest.json"):
        manifest.unlink()
    page = Page(report(study, tmp_path / "report.html"))
    page.check_alone()
    assert "Search" in page.headings


def test_settings_of_a_run_that_is_not_distilled(store: Store, tmp_path: Path) -> None:
    """Among the distillation terms stands a setting that is none."""
    settings = {"distill": {"teachers": "all", "graph": {"weight": 0.0}, "atom": None}}
    run = make_run(tmp_path / "run", store, predicted(store, noise=0.3, seed=1), settings=settings)
    page = Page(report(run, tmp_path / "report.html"))
    assert "Student alone" in page.text

"""Losses against hand-worked values, derivatives and limits; the size schemes as the paper derives them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from batches import random_targets, training_batch
from moldistill.core.errors import InputError
from moldistill.core.layers import named_layers
from moldistill.core.records import Batch, ModelOutput, TargetScale, TeacherTargets
from moldistill.core.settings import (
    AtomTermSettings,
    DistillSettings,
    PairTermSettings,
    StateTermSettings,
    TermSettings,
)
from moldistill.data.targets import StateStatistics, TargetSummary
from moldistill.distill.diagnostics import gradients, shares_by_size, shares_of, warnings_by_size, warnings_for
from moldistill.distill.distances import channel_distance, relational_distance
from moldistill.distill.normalization import GradientMatcher, normalize_states, size_weights
from moldistill.distill.objective import Counts, Objective
from moldistill.distill.pairs import PairTerm
from moldistill.distill.schedules import weight_at
from moldistill.distill.states import AtomTerm, GraphTerm, chosen_layers, partner, partners
from moldistill.training.moments import Moments

WIDTH = 6


def statistics(layers: int = 2, width: int = WIDTH) -> StateStatistics:
    return StateStatistics(
        torch.zeros(layers, width), torch.ones(layers, width), torch.eye(width).expand(layers, -1, -1)
    )


def summary(layers: int = 2, width: int = WIDTH) -> TargetSummary:
    kept = tuple(range(1, layers + 1))
    return TargetSummary(kept, layers, width, 5.0, statistics(layers, width), statistics(layers, width))


def output_for(batch: Batch, layers: int = 2, width: int = WIDTH) -> ModelOutput:
    states = random_targets(batch, layers, width, seed=7)
    graph = tuple(state.clone().requires_grad_() for state in states.graph_states)
    atoms = tuple(state.clone().requires_grad_() for state in states.atom_states)
    return ModelOutput(states.prediction.clone().requires_grad_(), graph, atoms)


@pytest.fixture(scope="module")
def batch(tiny_store: Path) -> Batch:
    return training_batch(tiny_store)


def test_channel_distances_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, -2.0, 0.5, 0.0]]), torch.tensor([[0.0, 1.0, 0.5, 2.0]])
    # differences 1, -3, 0, -2
    assert channel_distance("mse", student, teacher).item() == pytest.approx((1 + 9 + 0 + 4) / 4)
    assert channel_distance("l1", student, teacher).item() == pytest.approx((1 + 3 + 0 + 2) / 4)
    assert channel_distance("smooth_l1", student, teacher).item() == pytest.approx((0.5 + 2.5 + 0 + 1.5) / 4)
    cosine = (0 - 2 + 0.25 + 0) / (math.sqrt(5.25) * math.sqrt(5.25))
    assert channel_distance("cosine", student, teacher).item() == pytest.approx(1 - cosine, abs=1e-6)


@pytest.mark.parametrize("kind", ["mse", "smooth_l1", "l1", "cosine"])
def test_distances_vanish_for_equal_states_and_pass_gradcheck(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher = torch.randn(3, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: channel_distance(kind, x, teacher), student)  # type: ignore[arg-type]
    torch.testing.assert_close(
        channel_distance(kind, student, student),
        torch.zeros(3, dtype=torch.float64),
        atol=1e-7,
        rtol=0,  # type: ignore[arg-type]
    )
    channel_distance(kind, student, teacher).sum().backward()  # type: ignore[arg-type]
    assert teacher.grad is None, "a teacher is a constant"


def test_relational_distance_ignores_rotation_of_the_states() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=generator))[0]
    real = torch.tensor([True, True, True, False])
    assert float(relational_distance(states @ turn * 3, states, real)[:3].abs().max()) < 1e-12
    by_hand = 0.0
    other = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    for partner_index in range(3):
        ours = torch.cosine_similarity(other[0], other[partner_index], dim=0)
        theirs = torch.cosine_similarity(states[0], states[partner_index], dim=0)
        by_hand += float((ours - theirs) ** 2) / 3
    assert float(relational_distance(other, states, real)[0]) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("sum", [1.0, 1.0]),
        ("molecule_mean", [1 / 2, 1 / 10]),
        ("coordinated", [1 / 4, 1 / 100]),
        ("power", [2**-1.5, 10**-1.5]),
        ("batch_mean", [2 / 12, 2 / 12]),
        ("dataset_mean", [5**-1.5, 5**-1.5]),
    ],
)
def test_size_weights_by_hand(scheme: str, expected: list[float]) -> None:
    settings = AtomTermSettings(normalization=scheme, power=1.5)  # type: ignore[arg-type]
    found = size_weights(settings, torch.tensor([2, 10]), molecules=2.0, atoms=12.0, mean_atoms=5.0)
    torch.testing.assert_close(found, torch.tensor(expected))


def local_gradients(scheme: str, sizes: list[int]) -> list[float]:
    """Norm of the local loss's gradient on a parameter that all atoms share, for molecules of equal per-atom error.

    Each atom's state is the shared parameter, and the teacher's lies at distance 1 in every channel.
    """
    norms = []
    for size in sizes:
        settings = AtomTermSettings(weight=1.0, normalization=scheme, distance="mse", features="none")  # type: ignore[arg-type]
        term = AtomTerm(settings, WIDTH, 1, summary(1))
        torch.nn.init.eye_(term.projections[0].weight)  # type: ignore[arg-type]
        torch.nn.init.zeros_(term.projections[0].bias)  # type: ignore[arg-type]
        shared = torch.zeros(WIDTH, requires_grad=True)
        targets = random_batch_targets(size)
        loss = term((shared.expand(1, size, WIDTH),), targets, torch.tensor([size]), molecules=1.0, atoms=float(size))
        loss.backward()
        assert shared.grad is not None
        norms.append(float(shared.grad.norm()))
    return norms


def random_batch_targets(size: int):  # type: ignore[no-untyped-def]
    from moldistill.core.records import TeacherTargets

    return TeacherTargets(
        known=torch.ones(1, dtype=torch.bool),
        prediction=torch.zeros(1),
        graph_states=torch.ones(1, 1, WIDTH),
        atom_states=torch.ones(1, 1, size, WIDTH),
    )


def test_gradient_of_the_local_loss_against_molecule_size() -> None:
    """A plain sum's gradient grows as N; a molecule mean's is flat; the coordinated scheme's falls as 1/N."""
    sizes = [2, 4, 8, 16, 32]
    base = torch.tensor(sizes, dtype=torch.float32)
    unit = 2 / WIDTH * math.sqrt(WIDTH)  # d/dx of mean((x - 1)^2) at 0, over all channels
    for scheme, exponent in (("sum", 1.0), ("molecule_mean", 0.0), ("coordinated", -1.0)):
        expected = unit * base.pow(exponent)
        torch.testing.assert_close(torch.tensor(local_gradients(scheme, sizes)), expected, rtol=1e-5, atol=0)


def test_gradient_matched_holds_the_share_for_every_size() -> None:
    matcher = GradientMatcher(share=0.5)
    size = torch.tensor([3, 3, 12])
    for _ in range(3):
        matcher.observe(size, torch.tensor([6.0, 6.0, 48.0]), torch.tensor([2.0, 2.0, 2.0]), lambda tensor: tensor)
    # c(N) · G(N) = share · g = 1 for both sizes
    torch.testing.assert_close(matcher(torch.tensor([3, 12])), torch.tensor([1 / 6, 1 / 48]))
    # A size that was not seen yet: 3 per atom, the mean of 2 and 4.
    assert float(matcher(torch.tensor([7]))) == pytest.approx(1 / 21)
    assert float(GradientMatcher(share=0.5)(torch.tensor([7]))) == 0.0, "nothing was seen yet"


@pytest.mark.parametrize("scheme", ["sum", "coordinated", "batch_mean", "gradient_matched"])
def test_whole_objective_is_finite_and_moves_the_student(scheme: str, batch: Batch) -> None:
    settings = DistillSettings(
        prediction=TermSettings(weight=0.5),
        graph=StateTermSettings(weight=1.0),
        atom=AtomTermSettings(weight=1.0, normalization=scheme),  # type: ignore[arg-type]
        pair=PairTermSettings(weight=0.1),
    )
    objective = Objective(settings, TargetScale(5.0, 2.0, 5.0), width=WIDTH, depth=2, summaries=[summary()])
    taught = replace(batch, teachers=(random_targets(batch, 2, WIDTH),))
    output = output_for(taught)
    terms = objective(output, taught, Counts.from_tensor(Counts.of(taught)), 0.5)
    assert set(terms) == {"label", "prediction", "graph", "atom", "pair"}
    shares = shares_of(gradients(terms, [*output.graph_states, *output.atom_states, output.prediction]))
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(share > 0 for share in shares.values())


def test_label_and_prediction_terms_by_hand(batch: Batch) -> None:
    """Label terms average over finite targets, distillation terms over known molecules."""
    count = len(batch.target)
    target = torch.full((count,), float("nan"))
    target[:3] = torch.tensor([7.0, 3.0, 5.0])  # in units of the scale: 1, -1, 0
    known = torch.zeros(count, dtype=torch.bool)
    known[2:4] = True
    teacher = replace(random_targets(batch, 2, WIDTH), known=known, prediction=torch.full((count,), 9.0))  # 2 units
    mixed = replace(batch, target=target, teachers=(teacher,))
    output = output_for(mixed)
    output = replace(output, prediction=torch.zeros(count, requires_grad=True))
    settings = DistillSettings(prediction=TermSettings(weight=0.5))
    objective = Objective(settings, TargetScale(5.0, 2.0, 5.0), width=WIDTH, depth=2, summaries=[summary()])
    terms = objective(output, mixed, Counts.from_tensor(Counts.of(mixed)), 0.0)
    assert float(terms["label"].detach()) == pytest.approx((1 + 1 + 0) / 3)
    assert float(terms["prediction"].detach()) == pytest.approx(0.5 * 2.0)


def test_unknown_molecules_and_padding_change_nothing(batch: Batch) -> None:
    """Rubbish (even NaN) in padding and in molecules without targets moves neither value nor gradient."""
    settings = AtomTermSettings(weight=1.0, normalization="molecule_mean")
    torch.manual_seed(0)
    term = AtomTerm(settings, WIDTH, 2, summary())
    known = torch.ones(len(batch.target), dtype=torch.bool)
    known[0] = False
    clean = replace(random_targets(batch, 2, WIDTH), known=known)
    rubbish = clean.atom_states.clone()
    rubbish[:, 0] = float("nan")
    rubbish.masked_fill_(~batch.molecules.real[None, :, :, None], float("nan"))
    values = []
    for states in (clean.atom_states, rubbish):
        output = output_for(batch)
        loss = term(output.atom_states, replace(clean, atom_states=states), batch.molecules.size, 11.0, 50.0)
        loss.backward()
        gradient = output.atom_states[0].grad
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        assert not gradient[0].any()
        values.append((loss.detach(), gradient))
    torch.testing.assert_close(values[0][0], values[1][0])
    torch.testing.assert_close(values[0][1], values[1][1])


def test_parts_of_a_batch_add_up_to_the_whole(batch: Batch) -> None:
    """What makes two workers equal one: terms of row-wise parts, with global counts, sum to the whole's."""
    from moldistill.core.records import Molecules

    settings = DistillSettings(
        prediction=TermSettings(weight=0.3),
        graph=StateTermSettings(weight=1.0),
        atom=AtomTermSettings(weight=1.0, normalization="batch_mean"),
    )
    torch.manual_seed(0)
    objective = Objective(settings, TargetScale(5.0, 2.0, 5.0), width=WIDTH, depth=2, summaries=[summary()])
    teacher = random_targets(batch, 2, WIDTH)
    whole, output = replace(batch, teachers=(teacher,)), output_for(batch)
    counts = Counts.from_tensor(Counts.of(whole))
    expected = objective(output, whole, counts, 0.5)
    total = {name: torch.zeros(()) for name in expected}
    for rank in range(2):
        part = slice(rank, None, 2)
        molecules = Molecules(*(getattr(batch.molecules, field)[part] for field in Molecules.__slots__))
        taught = replace(
            teacher,
            known=teacher.known[part],
            prediction=teacher.prediction[part],
            graph_states=teacher.graph_states[:, part],
            atom_states=teacher.atom_states[:, part],
        )
        shard = Batch(molecules, batch.target[part], batch.positions[part], batch.has_positions[part], (taught,))
        mine = ModelOutput(
            output.prediction[part],
            tuple(state[part] for state in output.graph_states),
            tuple(state[part] for state in output.atom_states),
        )
        for name, value in objective(mine, shard, counts, 0.5).items():
            total[name] = total[name] + value
    for name, value in expected.items():
        torch.testing.assert_close(total[name], value)


def test_feature_normalizations() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    mixing = torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.1]], dtype=torch.float64)
    teacher = states @ mixing + 4.0
    moments = Moments.empty(1, 3)
    moments.add(teacher[None])
    known = StateStatistics(*(torch.from_numpy(part).double() for part in moments.statistics().values()))
    _, whitened = normalize_states("whiten", teacher, teacher, known, 0)
    torch.testing.assert_close(torch.cov(whitened.T), torch.eye(3, dtype=torch.float64), atol=1e-2, rtol=0)
    _, standard = normalize_states("standardize", teacher, teacher, known, 0)
    torch.testing.assert_close(standard.std(0), torch.ones(3, dtype=torch.float64), atol=1e-3, rtol=0)
    ours, theirs = normalize_states("layer_norm", teacher, teacher, known, 0)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(theirs.mean(-1), torch.zeros(4000, dtype=torch.float64), atol=1e-6, rtol=0)
    unit, _ = normalize_states("unit", teacher, teacher, known, 0)
    torch.testing.assert_close(unit.square().mean(-1), torch.ones(4000, dtype=torch.float64))


def test_pair_term_against_cross_entropy_by_hand(batch: Batch) -> None:
    torch.manual_seed(0)
    term = PairTerm(PairTermSettings(weight=1.0, bins=4, max_distance=8.0), WIDTH)
    output = output_for(batch)
    total = 0.0
    for index, size in enumerate(batch.molecules.size.tolist()):
        losses = []
        for i in range(size):
            for j in range(size):
                if i != j:
                    distance = float((batch.positions[index, i] - batch.positions[index, j]).norm())
                    hidden = term.project(output.atom_states[-1][index, i]) + term.project(
                        output.atom_states[-1][index, j]
                    )
                    logits = term.classify(torch.nn.functional.gelu(hidden))
                    losses.append(float(-torch.log_softmax(logits, -1)[min(3, int(distance / 2))]))
        total += sum(losses) / len(losses) if losses else 0.0
    assert float(term(output, batch).detach()) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", [2.0, 2.0, 2.0]),
        ("linear", [0.0, 1.0, 2.0]),
        ("cosine", [2.0, 1.0, 0.0]),
        ("warmup", [0.0, 2.0, 2.0]),
        ("decay", [2.0, 0.0, 0.0]),
    ],
)
def test_schedules(schedule: str, values: list[float]) -> None:
    settings = TermSettings(weight=2.0, schedule=schedule, until=0.5)  # type: ignore[arg-type]
    assert [weight_at(settings, share) for share in (0.0, 0.5, 1.0)] == pytest.approx(values)


def test_layers() -> None:
    kept = replace(summary(3), layers=(2, 4, 6), depth=6)
    assert chosen_layers("all", kept) == [0, 1, 2]
    assert chosen_layers("last", kept) == [2]
    assert chosen_layers("every 2", kept) == [0, 1, 2]
    assert chosen_layers("every 4", kept) == [0, 2]
    assert chosen_layers((4,), kept) == [1]
    for missing in ((3,), (7,)):
        with pytest.raises(InputError, match="not in the teacher's targets"):
            chosen_layers(missing, kept)
    with pytest.raises(InputError, match="not in the teacher's targets"):
        chosen_layers("every 5", replace(kept, layers=(2, 3), depth=6))
    assert [partner(layer, 6, 3) for layer in (1, 2, 4, 6)] == [1, 1, 2, 3]
    assert [partner(layer, 3, 6) for layer in (1, 2, 3)] == [2, 4, 6]


def test_the_layers_that_settings_name() -> None:
    assert named_layers("all", 4) == (1, 2, 3, 4)
    assert named_layers("last", 4) == (4,)
    assert named_layers("every 2", 5) == (1, 3, 5)
    assert named_layers("every 9", 5) == (5,)
    assert named_layers((3, 1), 5) == (3, 1)
    for wrong in ("first", "every", "every 0", "every -1", "every two", (), (0, 1), (2, 2)):
        with pytest.raises(ValueError, match="expected"):
            StateTermSettings(layers=wrong)


def test_partners_by_depth_or_by_name() -> None:
    assert partners(StateTermSettings(), [2, 4, 6], 6, 3) == [1, 2, 3]
    assert partners(StateTermSettings(student_layers=(3, 1, 1)), [2, 4, 6], 6, 3) == [3, 1, 1]
    for wrong in ((1, 2), (1, 2, 4)):
        with pytest.raises(InputError, match="student_layers do not fit"):
            partners(StateTermSettings(student_layers=wrong), [2, 4, 6], 6, 3)
    with pytest.raises(ValueError, match="from 1"):
        StateTermSettings(student_layers=(0,))


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_heads_map_one_width_to_another(head: str, batch: Batch) -> None:
    """A student of width 4 against a teacher of width 6: every layer has a map of its own, which learns."""
    settings = StateTermSettings(weight=1.0, head=head)  # type: ignore[arg-type]
    torch.manual_seed(0)
    term = GraphTerm(settings, 4, 2, summary())
    output = output_for(batch, width=4)
    term(output.graph_states, random_targets(batch, 2, WIDTH)).backward()
    assert len(term.projections) == 2
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in term.parameters())
    own = term.projections[0](output.graph_states[0])
    if head == "mlp":
        first, _, last = term.projections[0]  # type: ignore[misc]
        hidden = torch.nn.functional.gelu(output.graph_states[0] @ first.weight.T + first.bias)
        torch.testing.assert_close(own, hidden @ last.weight.T + last.bias)
    assert own.shape[-1] == WIDTH


def told(batch: Batch, prediction: float, known: Tensor, teacher: int) -> TeacherTargets:
    values = torch.full((len(batch.target),), prediction)
    return replace(random_targets(batch, 2, WIDTH, seed=teacher), prediction=values, known=known, teacher=teacher)


def test_several_teachers_are_averaged(batch: Batch) -> None:
    """Soft labels: the mean of those who know the molecule. States: the mean of what each teacher alone would give."""
    count = len(batch.target)
    everyone, some = torch.ones(count, dtype=torch.bool), torch.arange(count) < 4
    both = replace(batch, teachers=(told(batch, 9.0, everyone, 0), told(batch, 1.0, some, 1)))
    output = replace(output_for(batch), prediction=torch.zeros(count, requires_grad=True))
    settings = DistillSettings(prediction=TermSettings(weight=1.0), graph=StateTermSettings(weight=1.0))
    torch.manual_seed(0)
    objective = Objective(settings, TargetScale(5.0, 2.0, 5.0), width=WIDTH, depth=2, summaries=[summary(), summary()])
    counts = Counts.from_tensor(Counts.of(both))
    terms = objective(output, both, counts, 0.0)
    # The first alone says (9 - 5) / 2 = 2 units; both together 5 eV, which is 0.
    assert float(terms["prediction"].detach()) == pytest.approx(2.0 * (count - 4) / count)
    alone = [objective(output, replace(both, teachers=(one,)), counts, 0.0)["graph"] for one in both.teachers]
    assert float(alone[0].detach()) != pytest.approx(float(alone[1].detach()), rel=0.01)
    assert float(terms["graph"].detach()) == pytest.approx(float(sum(alone).detach()) / 2)


def test_a_constant_teacher_gives_finite_terms_that_can_be_learned(batch: Batch) -> None:
    """States without variance: their statistics, every normalization, every distance."""
    collected = Moments.empty(1, WIDTH)
    collected.add(torch.full((1, 50, WIDTH), 3.0))
    moments = StateStatistics(*map(torch.from_numpy, collected.statistics().values()))
    constant = replace(random_targets(batch, 1, WIDTH), prediction=torch.full((len(batch.target),), 5.0))
    constant = replace(
        constant,
        graph_states=torch.full_like(constant.graph_states, 3.0),
        atom_states=torch.full_like(constant.atom_states, 3.0),
    )
    for features in ("none", "layer_norm", "standardize", "whiten", "unit"):
        for distance in ("mse", "smooth_l1", "l1", "cosine", "relational"):
            known = replace(summary(1), graph=moments, atoms=moments)
            settings = DistillSettings(
                graph=StateTermSettings(weight=1.0, features=features, distance=distance),  # type: ignore[arg-type]
                atom=AtomTermSettings(weight=1.0, features=features, distance=distance),  # type: ignore[arg-type]
            )
            objective = Objective(settings, TargetScale(5.0, 2.0, 5.0), width=WIDTH, depth=1, summaries=[known])
            taught, output = replace(batch, teachers=(constant,)), output_for(batch, layers=1)
            sum(objective(output, taught, Counts.from_tensor(Counts.of(taught)), 0.5).values()).backward()  # type: ignore[union-attr]
            assert all(state.grad is None or state.grad.isfinite().all() for state in output.atom_states)
            assert all(
                parameter.grad is None or parameter.grad.isfinite().all() for parameter in objective.parameters()
            )


def test_an_identical_teacher_leaves_nothing_to_learn(batch: Batch) -> None:
    """Student states that are the teacher's, under projections that are the identity: every term is 0."""
    targets = random_targets(batch, 2, WIDTH, seed=7)
    taught, output = replace(batch, teachers=(targets,)), output_for(batch)
    for distance in ("mse", "smooth_l1", "l1", "cosine", "relational"):
        settings = DistillSettings(
            graph=StateTermSettings(weight=1.0, distance=distance),  # type: ignore[arg-type]
            atom=AtomTermSettings(weight=1.0, distance=distance),  # type: ignore[arg-type]
        )
        objective = Objective(settings, TargetScale(0.0, 1.0, 0.0), width=WIDTH, depth=2, summaries=[summary()])
        for layer in (layer for layer in objective.modules() if isinstance(layer, torch.nn.Linear)):
            torch.nn.init.eye_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        terms = objective(output, taught, Counts.from_tensor(Counts.of(taught)), 0.5)
        assert float(terms["graph"].detach()) == pytest.approx(0.0, abs=1e-6)
        assert float(terms["atom"].detach()) == pytest.approx(0.0, abs=1e-6)


def test_warnings_tell_of_sizes_of_which_the_whole_does_not() -> None:
    metrics = {
        "share_label": 0.5,
        "share_atom": 0.5,
        "share_label_6to10": 0.6,
        "share_atom_6to10": 0.4,
        "share_label_16to20": 0.05,
        "share_atom_16to20": 0.95,
        "loss_atom": 1.0,
    }
    assert warnings_by_size(metrics) == [
        "the term 'atom' drowns the label for molecules of 16 to 20 atoms, which has 5.0% of the gradient; "
        "lower its weight"
    ]
    assert shares_by_size(metrics)[(6, 10)] == {"label": 0.6, "atom": 0.4}
    everywhere = metrics | {"share_label": 0.05, "share_atom": 0.95}
    assert len(warnings_by_size(everywhere)) == 1


def test_warnings_name_the_term() -> None:
    assert not warnings_for({"label": 0.5, "graph": 0.5})
    assert "'atom' does nothing" in warnings_for({"label": 0.9995, "atom": 0.0005})[0]
    assert "'graph' drowns" in warnings_for({"label": 0.02, "graph": 0.98})[0]


def test_gradient_shares_of_known_norms() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    terms: dict[str, Tensor] = {"a": 3 * weight[0], "b": 1 * weight[1], "off": torch.zeros(())}
    assert shares_of(gradients(terms, [weight])) == pytest.approx({"a": 0.75, "b": 0.25, "off": 0.0})


def test_gradient_matched_needs_a_global_term() -> None:
    with pytest.raises(ValueError, match="gradient_matched"):
        DistillSettings(atom=AtomTermSettings(weight=1.0, normalization="gradient_matched"))

"""Programs are tables: their rows, and what can be counted before the run."""

from workbench.sampling import Combine, Evaluate, Node, Program, Step

A, B, C = Node(1.0, 0.5, 0.8), Node(0.5, 0.8, 0.5), Node(0.0, 1.0, 0.0)


def program() -> Program:
    first = Step(
        A,
        B,
        (
            Evaluate("D1", "x", A),
            Combine("y", {"x": 0.5, "D1": 0.25}, noise=0.1),
            Evaluate("D2", "y", B),
            Combine("x", {"y": 1, "D2": -0.5}),
        ),
    )
    return Program((first, Step(B, C, (Evaluate("D1", "x", B), Combine("x", {"D1": 1.0}, 0.3)))))


def test_counts():
    made = program()
    assert (made.nfe, made.draws, made.registers) == (3, 2, ("x", "D1", "y", "D2"))
    assert len(list(made.rows)) == 6


def test_terms_without_weight_are_left_out_and_the_rest_are_floats():
    row = Combine("x", {"x": 0.0, "D": 1, "E": 0}, noise=0)
    assert row.terms == (("D", 1.0),) and type(row.terms[0][1]) is float
    assert row.noise == 0.0 and type(row.noise) is float
    assert row == Combine("x", {"D": 1.0})


def test_a_free_evaluation_is_one_at_the_state_and_node_a_step_starts_from():
    whole, last = program().steps
    assert whole.free_evaluation() == "D1" and last.free_evaluation() == "D1"
    elsewhere = Step(A, B, (Evaluate("D", "x", B), Combine("x", {"D": 1.0})))
    moved = Step(A, B, (Combine("x", {"x": 2.0}), Evaluate("D", "x", A)))
    other = Step(A, B, (Combine("y", {"x": 2.0}), Evaluate("D", "y", A)))
    none = Step(A, B, (Combine("y", {"x": 2.0}),))
    for step in (elsewhere, moved, other, none):
        assert step.free_evaluation() is None


def test_noise_level_of_a_node():
    assert (A.rho, C.rho, Node(1.0, 0.0, 1.0).rho) == (1.6, 0.0, float("inf"))

"""`droveway blocker`, `cordon` and `uncordon` on a real Redis: what they say to people and to scripts, and do."""

from __future__ import annotations

import pytest

from tests.integration.console import Console


def test_a_pinned_guest_is_refused_with_the_reason_until_it_may_move_again(console: Console) -> None:
    code, out, _ = console("blocker", "add", "guest", "web", "--reason", "licence is bound to the host")
    assert (code, out) == (0, "guest web is pinned: licence is bound to the host\n")
    code, _, err = console("migrate", "web", "--to", "beta", "--detach")
    assert code == 3
    assert "licence is bound to the host" in err
    assert "droveway blocker del guest web" in err
    assert console("blocker", "del", "guest", "web")[0] == 0
    assert console("migrate", "web", "--to", "beta", "--detach")[0] == 0


def test_the_list_says_what_is_kept_since_when_until_when_and_why(console: Console) -> None:
    assert "nothing is pinned" in console("blocker", "list")[1]
    console("blocker", "add", "host", "beta", "--reason", "firmware under test", "--expires", "2h")
    console("cordon", "alpha", "--message", "a new board")
    by_name = {each["name"]: each for each in console.said("blocker", "list")["blockers"]}
    assert (by_name["beta"]["kept"], by_name["beta"]["reason"]) == ("host", "firmware under test")
    assert by_name["beta"]["expires"] - by_name["beta"]["since"] == pytest.approx(7200, abs=1)
    assert (by_name["alpha"]["kept"], by_name["alpha"]["expires"]) == ("cordon", None)
    table = console("blocker", "list")[1]
    assert "takes no guests" in table
    assert "firmware under test" in table
    assert "cordoned: a new board" in console("hosts")[1]


def test_a_cordon_is_taken_back_for_the_hosts_that_have_one(console: Console) -> None:
    assert console("cordon", "alpha", "beta", "--message", "a new board")[0] == 0
    code, _, err = console("migrate", "web", "--to", "beta", "--detach")
    assert code == 3
    assert "droveway uncordon beta" in err
    assert console.said("uncordon", "beta") == {"uncordoned": ["beta"]}
    assert console.said("uncordon", "alpha", "beta") == {"uncordoned": ["alpha"]}
    code, _, err = console("uncordon", "alpha")
    assert code == 3
    assert "not cordoned" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("blocker", "add", "guest", "wed", "--reason", "x"), 3, "did you mean web"),
        (("cordon", "alfa", "--message", "x"), 3, "did you mean alpha"),
        (("blocker", "add", "guest", "web", "--reason", " "), 2, "say why"),
        (("blocker", "add", "guest", "web", "--reason", "x" * 201), 2, "in fewer words"),
        (("blocker", "add", "guest", "web", "--reason", "a\nb"), 2, "one line"),
        (("blocker", "add", "guest", "web", "--reason", "x", "--expires", "soon"), 2, "soon"),
        (("blocker", "add", "guest", "web", "--reason", "x", "--expires", "0s"), 2, "over at once"),
        (("blocker", "add", "guest", "WEB", "--reason", "x"), 2, "cannot name a guest"),
        (("blocker", "add", "rack", "web", "--reason", "x"), 2, "rack"),
        (("blocker", "add", "guest", "web"), 2, "--reason"),
        (("blocker", "del", "guest", "web"), 3, "is not pinned"),
        (("cordon",), 2, "HOST"),
    ],
)
def test_bad_input_is_refused_in_a_sentence_and_keeps_nothing(
    console: Console, words: tuple[str, ...], code: int, said: str
) -> None:
    got, _, err = console(*words)
    assert got == code
    assert said in err
    assert console.said("blocker", "list") == {"blockers": []}


def test_what_somebody_else_said_stands_until_it_is_replaced(console: Console) -> None:
    console("blocker", "add", "guest", "web", "--reason", "a licence")
    code, _, err = console("blocker", "add", "guest", "web", "--reason", "a whim")
    assert code == 3
    assert "a licence" in err
    assert "--replace" in err
    assert console("blocker", "add", "guest", "web", "--reason", "a whim", "--replace")[0] == 0
    assert [each["reason"] for each in console.said("blocker", "list")["blockers"]] == ["a whim"]

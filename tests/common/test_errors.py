"""`exit_on_user_error`: a user's mistake is one line and status 2, a bug keeps its traceback."""

import pickle

import pytest

from realcustom_jax.common.errors import UserError, exit_on_user_error


def test_command_reports_a_user_error_in_one_line(capsys):
    @exit_on_user_error()
    def main():
        raise UserError("no such dog")

    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: no such dog\n"


def test_command_does_not_hide_bugs():
    with pytest.raises(ValueError, match="a bug"), exit_on_user_error():
        raise ValueError("a bug")


def test_message_can_be_written_whatever_it_quotes():
    assert str(UserError("no é\ud800 there")) == "no é\\ud800 there"
    assert str(pickle.loads(pickle.dumps(UserError("no é")))) == "no é"

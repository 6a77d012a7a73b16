"""What a rule that does not hold says of the value: as its user types it."""

import pytest

from alignment.config.best import Mode
from alignment.config.errors import ConfigError, error_prefix, require


@pytest.mark.parametrize(
    ("value", "told"),
    [(None, "null"), ((None, 2), "(null, 2)"), (Mode.max, "'max'"), ("a b", "'a b'"), (0.5, "0.5"), ([], "[]")],
)
def test_a_value_is_told_as_it_is_typed(value: object, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require(False, "key must be x", value)
    assert str(caught.value) == f"key must be x, got {told}"


def test_the_key_of_an_inner_config_gives_way_to_its_users_own() -> None:
    for told in ("model.path must be x", "model.path: no such"):
        with pytest.raises(ConfigError) as caught, error_prefix("reference.path", own="model.path"):
            raise ConfigError(told)
        assert str(caught.value) == told.replace("model.path", "reference.path")

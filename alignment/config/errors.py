"""What is said of a user's mistake."""


class UserError(ValueError):
    """A mistake that its user can mend: told in one line, without a traceback, exit code 2."""


class ConfigError(UserError):
    """A mistake in a config: key, rule and value."""


def require(holds: bool, rule: str, value: object) -> None:
    """Raise `ConfigError("<rule>, got <value>")` unless the rule holds."""
    if not holds:
        raise ConfigError(f"{rule}, got {value!r}")

"""The hub on this machine, and the command in this process."""

from tests.cli.conftest import alignment as alignment
from tests.hub.conftest import hub as hub
from tests.hub.conftest import model_folder as model_folder

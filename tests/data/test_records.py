import pickle

from alignment.data.records import DataError, Source


def test_an_error_says_file_line_and_what() -> None:
    assert str(DataError(Source("pairs.jsonl", 7), "the reply is empty")) == "pairs.jsonl:7: the reply is empty"


def test_an_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DataError(Source("pairs.jsonl", 7), "the reply is empty")))
    assert (str(error), error.source) == ("pairs.jsonl:7: the reply is empty", Source("pairs.jsonl", 7))

"""From files to tensors: row -> Record -> Example -> Batch, in one direction, each decision in one place."""

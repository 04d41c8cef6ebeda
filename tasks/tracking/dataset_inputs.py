"""A run's data as MLflow dataset inputs, so that MLflow's own pages show and search them.

The rows are in the run's artifacts already (`dataset/`): their name, digest, count and place are logged, not
their content again. `mlflow.log_input` itself would read them, to make a schema and a digest of its own.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from tasks.contracts.records import DatasetRef

DIGEST_CHARACTERS = 32  # MLflow keeps 36
# The one of MLflow's kinds of source that `mlflow.data.get_source(dataset).load()` reads a runs:/ URI with.
SOURCE_TYPE = "local"


def log(run: Any, name: str, dataset: DatasetRef) -> None:
    """Log training and evaluation rows as inputs of the run; again changes nothing.

    MLflow that refuses is a warning: the run has the same facts in its tags.
    """
    files = (
        ("training", "train", dataset.train_digest, dataset.train_rows),
        ("evaluation", "evaluation", dataset.evaluation_digest, dataset.evaluation_rows),
    )
    inputs = [
        DatasetInput(
            Dataset(
                name=f"{name} {context}",
                digest=file_digest[:DIGEST_CHARACTERS],
                source_type=SOURCE_TYPE,
                source=json.dumps({"uri": f"{dataset.uri}/{file}.jsonl"}),
                profile=json.dumps({"num_rows": rows}),
            ),
            [InputTag(MLFLOW_DATASET_CONTEXT, context)],
        )
        for context, file, file_digest, rows in files
        if file_digest and rows
    ]
    try:
        run.client.log_inputs(run.id, datasets=inputs)
    except MlflowException as error:
        logging.getLogger(__name__).warning("the data are not among the run's inputs: %s", error)

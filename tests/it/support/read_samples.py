"""Reads a folder of samples as their users do, and prints what it found as JSON.

    python read_samples.py parquet|csv|jsonl FOLDER

Parquet is read by pandas and by pyarrow as one partitioned table, which must agree. JSON lines are read strictly: the members of
SageMaker's data capture and of its ground truth, and no others.
"""

import csv
import io
import json
import pathlib
import sys

FEATURE, PROBABILITY = "feature_", "probability_"


def strict(found, *members):
    assert set(found) == set(members), f"{sorted(found)} in place of {sorted(members)}"
    return found


def of_columns(records):
    """Rows of a table, by request id and row."""
    return {f"{record['request_id']} {int(record['row'])}": record for record in records}


def parquet(folder):
    import pandas
    import pyarrow.dataset

    # The folders that begin with an underscore are not the samples'.
    frame = pandas.read_parquet(folder)
    table = pyarrow.dataset.dataset(folder, partitioning="hive").to_table()
    assert table.num_rows == len(frame), "pandas and pyarrow count alike"
    assert {"model", "version", "date", "hour"} <= set(frame.columns), list(frame.columns)
    assert str(frame["time"].dtype) == "datetime64[ms, UTC]", frame["time"].dtype
    labels = pandas.concat(pandas.read_parquet(path, partitioning=None) for path in pathlib.Path(folder).glob("_labels/model=*/**/*.parquet"))
    joined = frame.merge(labels[["request_id", "row", "label", "key_id"]], on=["request_id", "row", "key_id"], suffixes=("", "_true"))
    answers = json.loads(frame.drop(columns=["time", "model", "version", "date", "hour"]).to_json(orient="records", double_precision=15))
    return {"rows": of_columns(answers), "joined": len(joined)}


def csv_files(folder):
    rows, labels = [], set()
    for path in pathlib.Path(folder).rglob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            records = list(csv.DictReader(file, strict=True))
        assert all(None not in record and None not in record.values() for record in records), f"a ragged line in {path}"
        top = path.relative_to(folder).parts[0]
        if top == "_labels":
            labels |= {(record["request_id"], record["row"]) for record in records}
        elif not top.startswith("_"):
            rows += records
    return {"rows": of_columns(rows), "joined": sum((row["request_id"], row["row"]) in labels for row in rows)}


def jsonl(folder):
    rows, labels, lines = {}, {}, 0
    for path in pathlib.Path(folder).rglob("*.jsonl"):
        top = path.relative_to(folder).parts[0]
        for line in path.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if top == "_labels":
                strict(event, "groundTruthData", "eventMetadata", "eventVersion")
                strict(event["groundTruthData"], "data", "encoding")
                strict(event["eventMetadata"], "eventId")
                labels[event["eventMetadata"]["eventId"]] = event["groundTruthData"]["data"].split("\n")
            elif not top.startswith("_"):
                lines += 1
                rows.update(captured(event))
    joined = sum(bool(label) for id, column in labels.items() for row, label in enumerate(column) if f"{id} {row}" in rows)
    return {"rows": rows, "joined": joined, "lines": lines}


def captured(event):
    strict(event, "captureData", "eventMetadata", "eventVersion")
    data = strict(event["captureData"], "endpointInput", "endpointOutput")
    metadata = strict(event["eventMetadata"], "eventId", "customAttributes", "inferenceTime")
    assert event["eventVersion"] == "0"
    tables = []
    for name, mode in (("endpointInput", "INPUT"), ("endpointOutput", "OUTPUT")):
        payload = strict(data[name], "observedContentType", "mode", "data", "encoding")
        assert (payload["mode"], payload["encoding"]) == (mode, "CSV"), payload
        tables.append(list(csv.reader(io.StringIO(payload["data"], newline=""), strict=True)))
    inputs, outputs = tables
    assert len(inputs) == len(outputs)
    return {
        f"{metadata['eventId']} {row}": {"features": features, "prediction": answer[0], "probabilities": answer[1:]}
        for row, (features, answer) in enumerate(zip(inputs, outputs))
    }


print(json.dumps({"parquet": parquet, "csv": csv_files, "jsonl": jsonl}[sys.argv[1]](sys.argv[2])))

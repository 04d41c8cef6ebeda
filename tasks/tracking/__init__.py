"""MLflow: runs, artifacts, connection, history of a model, predictions tables.

Not for deciding anything: who is champion is register's, the verdict the gate's.
"""

"""What analysts see: the published tables, read through the manifest and queried with DuckDB."""

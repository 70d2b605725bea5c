"""Beyond one machine: a plan of parts, each embedded into one Parquet file by any engine, and the proof of it."""

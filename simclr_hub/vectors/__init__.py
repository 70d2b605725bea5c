"""Beyond one machine: the vectors of parts on a server that searches them, PostgreSQL with pgvector, or Milvus."""

"""The databases: connections, tables, and what SQL statements share."""

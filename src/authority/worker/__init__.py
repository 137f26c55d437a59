"""The confined process that parses remote bytes: see `main`."""

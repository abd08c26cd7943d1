"""A process that reads what needs to be read: ends TLS, judges requests, puts credentials."""

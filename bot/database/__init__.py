"""The database: the requests, and the audit that is written with every change of them."""

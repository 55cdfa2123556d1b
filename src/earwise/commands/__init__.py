"""The commands, a small file per group. Each imports only click until it runs."""

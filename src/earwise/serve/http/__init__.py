"""What a client may send: connections, headers, bodies and their limits, before a route sees the request."""

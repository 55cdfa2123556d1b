"""Requests to models that write data sets, with a log of every answer so that none is requested twice."""

"""Builders of data sets: questions from labels, published sets, ReasonAQA, SARI, XS-CoT, checks and scans."""

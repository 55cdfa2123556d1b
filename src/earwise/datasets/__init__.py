"""Builders of data sets: questions from labels, published sets, teachers, SARI, XS-CoT, checks and scans."""

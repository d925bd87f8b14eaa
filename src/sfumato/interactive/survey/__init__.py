"""Surveys: pictures that people judge, and what their answers say."""

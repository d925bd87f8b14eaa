"""Trackers: a run's records, pictures and cards, sent to where runs are compared.

The files of the run folder stay the truth. Nothing here changes a number of the run.
"""

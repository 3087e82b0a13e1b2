"""The settings of each task, complete and frozen, one file per task. Runs with equal settings are the same run.

Each module offers ``small()`` (minutes on two cores, for the stand-in data) and ``paper()`` (the paper's dimensions
and hyper-parameters, for the official files). Nothing heavy is imported here, so that the command line can show the
defaults.
"""

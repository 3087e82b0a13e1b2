"""What is run: complete, frozen settings, one file a task. Two runs are the same run exactly if these are equal.

Each module offers ``small()`` (minutes on two cores, for the stand-in data) and ``paper()`` (the paper's dimensions
and hyper-parameters, for the official files). Nothing heavy is imported here, so that the command line can show the
defaults.
"""

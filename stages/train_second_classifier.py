"""Train a second classifier, of another shape and seed, for the table alone: no choice is ever made by it."""

from functools import partial

from stages import train_classifier
from stages.runner import stage

Config = train_classifier.Config
compute = partial(train_classifier.compute, kind="second_classifier")

main = stage("train_second_classifier", Config, compute, __doc__)

if __name__ == "__main__":
    main()

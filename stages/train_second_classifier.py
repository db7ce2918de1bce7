"""Train a second classifier, of another shape and seed, for the table alone: no choice is ever made by it."""

from functools import partial

from stages import train_classifier
from stages.cli import stage

Config = train_classifier.Config
run = partial(train_classifier.run, kind="second_classifier")

main = stage("train_second_classifier", Config, run, __doc__)

if __name__ == "__main__":
    main()

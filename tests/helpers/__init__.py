"""What tests share: a test imports from here, never from another test."""

from helpers.torchvision_operators import import_torchvision

import_torchvision()  # before anything imports transformers

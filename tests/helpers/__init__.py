"""What tests share: a test imports from here, never from another test."""

"""For every test: a property is judged by what holds; the clock of a busy machine is pytest-timeout's business."""

from hypothesis import settings

settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

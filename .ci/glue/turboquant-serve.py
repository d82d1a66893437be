import functools

import turboquant.cache
from turboquant.cache import TurboQuantCache  # noqa: F401

turboquant.cache.LloydMaxCodebook = functools.cache(turboquant.cache.LloydMaxCodebook)

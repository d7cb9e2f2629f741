"""The half of the conformance runner that prepares, supervises and judges; it needs Python 3.11 or newer.

suites        which suites there are, pinned, and how one module of each is started
interpreters  facts about the interpreter under test
cache         the folder where everything downloaded or made is kept
sources       source distributions, checked by hash and unpacked
environments  virtual environments with a suite's requirements
loops         the loop under test, built or installed as a folder for the path
hosts         a localhost with both addresses for the tests
supervise     one module in one process: limits, crashes, what was running
runner        all modules of a suite, and its control
results       what a run found, as JSON
expectations  the differences that are known, each with a reason
verdict       a run judged against its control and the expectations
report        what a person reads in the end
errors        what stops a run before there is anything to judge
"""

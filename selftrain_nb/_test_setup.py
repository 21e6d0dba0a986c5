"What nbdev_test calls before it starts its workers: `test_setup` in pyproject.toml."
import os

def one_thread(cells):
    "A thread for each worker: two workers with two threads each on two cores are five times slower than with one"
    os.environ.setdefault('OMP_NUM_THREADS', '1')

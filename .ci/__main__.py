"""`python .ci test|test-slow|sync|save|docs`: the book's own tools, see `book.py`."""

from book import main

main()

"""python -m edgeredux"""

from edgeredux.cli import main

main()

"""Which weights may go together and how many: shared by everything that makes zeros. Imports torch."""

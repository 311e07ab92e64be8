"""Recoveries on unlabelled text: recipes, their texts, and how their results are judged; no part of the product."""

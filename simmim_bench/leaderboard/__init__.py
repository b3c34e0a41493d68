"""The leaderboard: tables, an HTML page and a consistency check, all derived from the records of transfer runs.

Records are found (`find`), grouped by protocol and ranked (`board`), and rendered as Markdown, CSV, JSON and
LaTeX (`tables`, `changes`) and as an HTML page (`page_data`, `figures`, `page`); `write` writes the files,
`check` verifies records and files, and `archive` copies runs to where they can be committed. May import
`results` and every layer below it; the frameworks and the transfer tasks stay out.
"""

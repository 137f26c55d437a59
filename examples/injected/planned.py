"""The office assistant's job, planned: every value goes where the person wanted it, and none is read.

The demo's program reads the documents and is theirs from then on. This one holds handles. What a
letter says can change what stands in the report; it can't change who gets it, or what is done next.
"""

import sys

from authority.agent import Denied, connect, join

OFFICE, DOCUMENTS = sys.argv[1], sys.argv[2:]  # the person's words, as all that is written here
TREASURER = "treasurer@riverside.example"
POUNDS = """
import decimal, json
euros = decimal.Decimal(values[0].removeprefix("EUR "))
answer(f"{euros * decimal.Decimal(json.loads(values[1])['EUR_GBP']):.2f}")
"""
gate = connect()
gate.http("POST", f"{OFFICE}/notes", body=b"assistant started")
rates = gate.http("GET", f"{OFFICE}/rates.json").text

lines = ["# What came in\n\n| document | title | words | total |\n|---|---|---|---|\n"]
totals = {}
for name in DOCUMENTS:
    found = gate.tool("summarise", {"text": gate.read(name, handle=True)})
    totals[name] = found["/total"]
    lines += [f"| {name} | ", found["/title"], " | ", found["/words"], " | "]
    lines += [totals[name], " |\n"]
report = join(*lines)
gate.write("out/report.md", report)
print("wrote out/report.md", flush=True)

mail = gate.tool("office/find_mail", {"query": "hollow-lane"}, handle=True)
mail = mail["/structuredContent/result/0"]
body = join(*lines, "\nThe nursery wrote: ", mail["/body"], "\n")
gate.tool("office/send_mail", {"to": TREASURER, "subject": "What came in", "body": body})
gate.tool("office/archive_mail", {"id": mail["/id"]})
print("mailed it to the treasurer", flush=True)

pounds = gate.compute(POUNDS, totals["docs/invoice-0417.md"], rates)
payment = {"to": "Hollow Lane Nursery", "pounds": pounds}
try:
    gate.tool("office/pay", payment, wait=lambda _: print("a person has to approve", flush=True))
    print("approved", flush=True)
except Denied as denied:
    print("refused:", denied.code, flush=True)

"""What a runtime has loaded once the agent is imported: run by its interpreter, as a script.

The argument is the runtime's folder. Prints paths, one a line: of code in memory, of where modules
are looked for, and of modules. ``making.check`` reads them.
"""

import sys

sys.path.insert(0, sys.argv[1])
__import__("start").install(sys.argv[1])
agent = __import__("agentd.guest.agent", fromlist=["preload"])
__import__("agentd.guest.main")
agent.preload()
with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
    lines = [line.split(None, 5) for line in file]
print(*{line[5].strip() for line in lines if "x" in line[1] and "/" in line[-1]}, sep="\n")
print(*sys.path, sep="\n")
for name, module in sys.modules.items():
    if name != "__main__":
        print(getattr(module, "__file__", None) or sys.argv[1])

import sys; sys.path.insert(0,'tests')
from test_joining import *
import pathlib, shutil
c=Cluster("in_memory"); shutil.rmtree('/tmp/wt/join/dbgrun',ignore_errors=True)
m=sys.argv[1]
rd=pathlib.Path('/tmp/wt/join/dbgrun')
models=[VectorModel([1.0,1.0]) for _ in range(4)]
c.start(models,method=m,run_dir=rd,**EARLY,**QUICK); c.step_all(100)
c.nodes[1].close(); c.add('w2',VectorModel([100.0,100.0]),run_dir=rd); c.nodes[1],c.models[1]=c.nodes.pop(),c.models.pop()
if len(sys.argv)>2:
    c.nodes[2].close(); c.add('w3',VectorModel([100.0,100.0]),run_dir=rd); c.nodes[2],c.models[2]=c.nodes.pop(),c.models.pop()
    with out_of_reach(c,0,3): step(c,1,2,times=30)
else:
    with out_of_reach(c,0,2,3): step(c,1,times=20)
print(c.vectors()[:,0], [n._boundary.state for n in c.nodes])
for i in range(12):
    c.step_all(1); print(i,c.vectors()[:,0],[round(n.statistics().clock) for n in c.nodes],[n.method.round for n in c.nodes],[n._boundary._joining.is_on for n in c.nodes], [n.statistics().method.get('mass') for n in c.nodes])
c.close()

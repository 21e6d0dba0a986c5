"The tables of public data sets, written down once more from their own sources: a slip in the package cannot hide here."

# cityscapesScripts, helpers/labels.py: the name of each id, * where it is one of the 19
CITYSCAPES = '''unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, road*, sidewalk*,
parking, rail track, building*, wall*, fence*, guard rail, bridge, tunnel, pole*, polegroup, traffic light*,
traffic sign*, vegetation*, terrain*, sky*, person*, rider*, car*, truck*, bus*, caravan, trailer, train*,
motorcycle*, bicycle*'''.replace('\n', ' ').split(', ')
CITYSCAPES_BY_ID = [n[:-1] if n.endswith('*') else None for n in CITYSCAPES]
NINETEEN = [n for n in CITYSCAPES_BY_ID if n]
NINETEEN_COLOURS = '''80 40 80, f4 23 e8, 46 46 46, 66 66 9c, be 99 99, 99 99 99, fa aa 1e, dc dc 00, 6b 8e 23,
98 fb 98, 46 82 b4, dc 14 3c, ff 00 00, 00 00 8e, 00 00 46, 00 3c 64, 00 50 64, 00 00 e6, 77 0b 20'''

# VOC2012 development kit
VOC = '''background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
pottedplant sheep sofa train tvmonitor'''.split()
VOC_COLOURS = '''00 00 00, 80 00 00, 00 80 00, 80 80 00, 00 00 80, 80 00 80, 00 80 80, 80 80 80, 40 00 00, c0 00 00,
40 80 00, c0 80 00, 40 00 80, c0 00 80, 40 80 80, c0 80 80, 00 40 00, 80 40 00, 00 c0 00, 80 c0 00, 00 40 80'''

# CamVid, label_colors.txt, and the class of SegNet's 11 that each of the 32 becomes
_CAMVID_32 = '''
Animal, 40 80 40, Pedestrian
Archway, c0 00 80, Building
Bicyclist, 00 80 c0, Bicyclist
Bridge, 00 80 40, Building
Building, 80 00 00, Building
Car, 40 00 80, Car
CartLuggagePram, 40 00 c0, Pedestrian
Child, c0 80 40, Pedestrian
Column_Pole, c0 c0 80, Pole
Fence, 40 40 80, Fence
LaneMkgsDriv, 80 00 c0, Road
LaneMkgsNonDriv, c0 00 40, Road
Misc_Text, 80 80 40, SignSymbol
MotorcycleScooter, c0 00 c0, Bicyclist
OtherMoving, 80 40 40, Car
ParkingBlock, 40 c0 80, Pavement
Pedestrian, 40 40 00, Pedestrian
Road, 80 40 80, Road
RoadShoulder, 80 80 c0, Pavement
Sidewalk, 00 00 c0, Pavement
SignSymbol, c0 80 80, SignSymbol
Sky, 80 80 80, Sky
SUVPickupTruck, 40 80 c0, Car
TrafficCone, 00 00 40, Pole
TrafficLight, 00 40 40, SignSymbol
Train, c0 40 80, Car
Tree, 80 80 00, Tree
Truck_Bus, c0 80 c0, Car
Tunnel, 40 00 40, Building
VegetationMisc, c0 c0 00, Tree
Void, 00 00 00, -
Wall, 40 c0 00, Building'''
CAMVID_32 = {n: (c, None if e == '-' else e) for n, c, e in (l.split(', ') for l in _CAMVID_32.strip().split('\n'))}
CAMVID = 'Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist'.split()

# AutoNUE public code, helpers/anue_labels.py: level3Id, with the names of the ids that share one
IDD = ['road', 'parking & drivable fallback', 'sidewalk', 'rail track & non-drivable fallback', 'person & animal',
       'rider', 'motorcycle', 'bicycle', 'autorickshaw', 'car', 'truck', 'bus',
       'caravan, trailer, train & vehicle fallback', 'curb', 'wall', 'fence', 'guard rail', 'billboard', 'traffic sign',
       'traffic light', 'pole & polegroup', 'obstacle, street and barrier fallback', 'building', 'bridge & tunnel',
       'vegetation', 'sky & background fallback']
IDD_COLOURS = '''80 40 80, fa aa a0, f4 23 e8, e6 96 8c, dc 14 3c, ff 00 00, 00 00 e6, 77 0b 20, ff cc 36, 00 00 8e,
00 00 46, 00 3c 64, 00 00 5a, dc be 28, 66 66 9c, be 99 99, b4 a5 b4, ae 40 43, dc dc 00, fa aa 1e, 99 99 99, a9 bb d6,
46 46 46, 96 64 64, 6b 8e 23, 46 82 b4'''
IDD_LITE = 'drivable, non-drivable, living-things, vehicles, roadside-objects, far-objects, sky'.split(', ')

def _named(text):
    lines = [l.split(': ') for l in text.strip().split('\n')]
    return [f'{top}--{n}' for top, names in lines for n in names.split()]

# Mapillary Vistas, config_v1.2.json
VISTAS_66 = _named('''
animal: bird ground-animal
construction: barrier--curb barrier--fence barrier--guard-rail barrier--other-barrier barrier--wall flat--bike-lane
construction: flat--crosswalk-plain flat--curb-cut flat--parking flat--pedestrian-area flat--rail-track flat--road
construction: flat--service-lane flat--sidewalk structure--bridge structure--building structure--tunnel
human: person rider--bicyclist rider--motorcyclist rider--other-rider
marking: crosswalk-zebra general
nature: mountain sand sky snow terrain vegetation water
object: banner bench bike-rack billboard catch-basin cctv-camera fire-hydrant junction-box mailbox manhole
object: phone-booth pothole street-light support--pole support--traffic-sign-frame support--utility-pole
object: traffic-light traffic-sign--back traffic-sign--front trash-can
object--vehicle: bicycle boat bus car caravan motorcycle on-rails other-vehicle trailer truck wheeled-slow
void: car-mount ego-vehicle unlabeled''')

# Mapillary Vistas, config_v2.0.json
VISTAS_124 = _named('''
animal: bird ground-animal
construction--barrier: ambiguous concrete-block curb fence guard-rail other-barrier road-median road-side separator
construction--barrier: temporary wall
construction--flat: bike-lane crosswalk-plain curb-cut driveway parking parking-aisle pedestrian-area rail-track
construction--flat: road road-shoulder service-lane sidewalk traffic-island
construction--structure: bridge building garage tunnel
human: person--individual person--person-group rider--bicyclist rider--motorcyclist rider--other-rider
marking: continuous--dashed continuous--solid continuous--zigzag
marking--discrete: ambiguous arrow--left arrow--other arrow--right arrow--split-left-or-straight
marking--discrete: arrow--split-right-or-straight arrow--straight crosswalk-zebra give-way-row give-way-single
marking--discrete: hatched--chevron hatched--diagonal other-marking stop-line symbol--bicycle symbol--other text
marking-only: continuous--dashed discrete--crosswalk-zebra discrete--other-marking discrete--text
nature: mountain sand sky snow terrain vegetation water
object: banner bench bike-rack catch-basin cctv-camera fire-hydrant junction-box mailbox manhole parking-meter
object: phone-booth pothole sign--advertisement sign--ambiguous sign--back sign--information sign--other
object: sign--store street-light
object--support: pole pole-group traffic-sign-frame utility-pole
object: traffic-cone traffic-light--cyclists traffic-light--general-horizontal traffic-light--general-single
object: traffic-light--general-upright traffic-light--other traffic-light--pedestrians
object--traffic-sign: ambiguous back direction-back direction-front front information-parking temporary-back
object--traffic-sign: temporary-front
object: trash-can
object--vehicle: bicycle boat bus car caravan motorcycle on-rails other-vehicle trailer truck vehicle-group
object--vehicle: wheeled-slow
object: water-valve
void: car-mount dynamic ego-vehicle ground static unlabeled''')

# What becomes of each class: the reading that notebook 05 explains
CITYSCAPES_TO_CAMVID = dict(zip(NINETEEN, '''Road Pavement Building Building Fence Pole SignSymbol SignSymbol Tree Tree
Sky Pedestrian Bicyclist Car Car Car Car Bicyclist Bicyclist'''.split()))
CAMVID_TO_CITYSCAPES = dict(zip(CAMVID, ['sky', 'building', 'pole', 'road', 'sidewalk', 'vegetation', 'traffic sign',
                                         'fence', 'car', 'person', None]))
CAMVID_TO_IDD_LITE = dict(zip(CAMVID, ['sky', 'far-objects', 'roadside-objects', 'drivable', 'non-drivable',
                                       'far-objects', 'roadside-objects', 'roadside-objects', 'vehicles',
                                       'living-things', None]))
IDD_LITE_TO_CAMVID = dict(zip(IDD_LITE, ['Road', 'Pavement', 'Pedestrian', 'Car', None, None, 'Sky']))
_VISTAS = '''
construction--flat: road, road; service-lane, road; bike-lane, road; crosswalk-plain, road; sidewalk, sidewalk
construction--flat: pedestrian-area, sidewalk; curb-cut, sidewalk
construction: barrier--curb, sidewalk; structure--building, building; barrier--wall, wall; barrier--fence, fence
marking: crosswalk-zebra, road; general, road
nature: vegetation, vegetation; terrain, terrain; sand, terrain; sky, sky
human: person, person; rider--bicyclist, rider; rider--motorcyclist, rider; rider--other-rider, rider
object: manhole, road; pothole, road; catch-basin, road; support--pole, pole; support--utility-pole, pole
object: street-light, pole; traffic-light, traffic light; traffic-sign--front, traffic sign
object--vehicle: car, car; truck, truck; bus, bus; on-rails, train; motorcycle, motorcycle; bicycle, bicycle'''
VISTAS_TO_CITYSCAPES = {n: None for n in VISTAS_66 if n != 'void--unlabeled'}
for _line in _VISTAS.strip().split('\n'):
    _top, _pairs = _line.split(': ')
    VISTAS_TO_CITYSCAPES |= {f'{_top}--{n}': c for n, c in (p.split(', ') for p in _pairs.split('; '))}

def rgb(text): return [tuple(bytes.fromhex(c)) for c in text.replace('\n', ' ').split(',')]
